// What opens the tag editor: a button while the caret is in a <lora:…> tag, F2, and in the
// standalone page the popup about a network.
(() => {
    "use strict";
    const kit = window.crucible_editor ??= {};
    const tags = () => window.crucible_tags;

    let opener = null;

    function makeOpener() {
        const title = "Edit this tag as a picture (F2)";
        opener = kit.button("Edit tag", "crucible-edit-tag", {title, "aria-label": title});
        opener.hidden = true;
        opener.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the caret
        opener.addEventListener("click", () => kit.openAt(opener.box));
        document.body.append(opener);
    }

    // On the lower edge of the box, so that no line of the prompt is covered.
    function offerEditor() {
        const box = document.activeElement;
        const isPrompt = tags()?.boxOf({composedPath: () => [box]}) === box && box !== null;
        const wanted = isPrompt && !tags().isNegative(box) && kit.loraAt(box) !== null
            && !window.crucible_completion?.isOpen();
        if (!wanted) {
            if (opener) opener.hidden = true;
            return;
        }
        if (!opener?.isConnected) makeOpener();
        opener.box = box;
        opener.hidden = false;
        const frame = box.getBoundingClientRect();
        const [width, height] = [opener.offsetWidth, opener.offsetHeight];
        opener.style.left = `${Math.min(frame.right, innerWidth) - width - 80}px`;
        opener.style.top = `${frame.bottom - height / 2}px`;
    }

    for (const name of ["selectionchange", "crucible-completions"]) {
        document.addEventListener(name, offerEditor);
    }
    for (const name of ["focusin", "focusout"]) {
        document.addEventListener(name, () => setTimeout(offerEditor));
    }
    document.addEventListener("input", offerEditor);
    document.addEventListener("scroll", offerEditor, true);
    addEventListener("resize", offerEditor);
    document.addEventListener("keydown", (event) => {
        const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !event.shiftKey;
        const box = event.key === "F2" && plain && tags()?.boxOf(event);
        if (!box || tags().isNegative(box) || !kit.loraAt(box)) return;
        event.preventDefault();
        kit.openAt(box);
    }, true);

    // In the popup the page's own keys, which mean the prompt, rest.
    addEventListener("keydown", (event) => {
        if (!kit.state || !kit.dialog()?.contains(event.target)) return;
        const writes = event.key === "Enter" && (event.ctrlKey || event.metaKey);
        if (!writes && event.key !== "Escape") return;
        event.stopPropagation(); // Escape closes the popup all the same
        if (!writes) return;
        event.preventDefault();
        kit.finish();
    }, true);

    // In the standalone page: from the popup about a network, whose tag is written if need be.
    document.addEventListener("click", (event) => {
        const card = event.target.closest?.(".crucible-i")?.parentElement.firstElementChild;
        const header = card && document.querySelector("#crucible-about header");
        if (!header) return;
        header.querySelector(".crucible-to-editor")?.remove();
        if (card.classList.contains("crucible-broken")) return;
        const edit = kit.button("Blocks and steps", "crucible-to-editor");
        edit.addEventListener("click", () => {
            document.querySelector("#crucible-about").close();
            editNetwork(card.dataset);
        });
        header.lastElementChild.before(edit);
    });

    function editNetwork({name, alias, tag}) {
        const box = document.querySelector("#crucible-prompt textarea");
        const isIts = (each) => tags().isLora(each) && [name, alias].includes(each.name);
        if (!tags().tagsIn(box.value).some(isIts)) {
            const end = box.value.length;
            tags().replace(box, end, end, end && !/\s$/.test(box.value) ? ` ${tag}` : tag);
        }
        box.focus();
        const found = tags().tagsIn(box.value).find(isIts);
        box.setSelectionRange(found.end - 1, found.end - 1);
        kit.openAt(box);
    }

    kit.offer = offerEditor;
})();
