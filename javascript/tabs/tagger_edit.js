// The gallery of the Tagger's editor: picking pictures, keys, captions and tags edited in place.
(() => {
    "use strict";
    const gallery = () => document.querySelector("#crucible-edit-gallery .crucible-shots");
    const shots = () => [...(gallery()?.children ?? [])];
    const nameOf = (shot) => shot.dataset.name;
    const tell = (order) => window.crucibleTagger.tell("crucible-edit", order);
    let anchor = ""; // where a range of picked pictures begins
    let focused = ""; // the picture that has the focus, also after the gallery was made anew
    let typed = null; // {name, box} of the caption that is being typed

    // --- picking --------------------------------------------------------------------------------

    const isPicked = (shot) => shot.getAttribute("aria-selected") === "true";
    const pick = (shot, on) => shot.setAttribute("aria-selected", String(on));

    function toggle(shot, range) {
        const all = shots();
        const from = all.findIndex((each) => nameOf(each) === anchor);
        if (range && from >= 0) {
            const [first, last] = [from, all.indexOf(shot)].sort((a, b) => a - b);
            for (const each of all.slice(first, last + 1)) pick(each, true);
        } else {
            pick(shot, !isPicked(shot));
            anchor = nameOf(shot);
        }
        tellPicked();
    }

    function tellPicked() {
        const all = shots();
        tell({do: "pick", names: all.filter(isPicked).map(nameOf), of: all.map(nameOf), newest: true});
    }

    // --- one caption ----------------------------------------------------------------------------

    function openCaption(shot, before) {
        const place = shot.querySelector("p");
        if (!place || shot.querySelector("textarea") || !shot.querySelector(".crucible-pen")) return;
        const box = document.createElement("textarea");
        box.className = "crucible-field";
        box.value = before?.value ?? place.dataset.text;
        typed = {name: nameOf(shot), box};
        box.setAttribute("aria-label", "Caption");
        place.hidden = true;
        place.after(box);
        box.style.height = `${Math.max(96, box.scrollHeight + 4)}px`;
        box.focus();
        if (before) box.setSelectionRange(before.selectionStart, before.selectionEnd);
        shot.scrollIntoView({block: "nearest"});
    }

    function closeCaption(box, save) {
        if (!box.isConnected || box.dataset.closed) return;
        const shot = box.closest(".crucible-shot");
        const place = shot.querySelector("p");
        typed = null;
        if (save && box.value !== place.dataset.text) {
            // It stays, with what was typed, until the server shows the new caption.
            tell({do: "write", value: nameOf(shot), text: box.value});
            return;
        }
        box.dataset.closed = "true"; // removing it takes its focus, which would come here again
        box.remove();
        place.hidden = false;
    }

    // --- tags -----------------------------------------------------------------------------------

    function openRename(row) {
        const button = row.querySelector(".crucible-tagname");
        const box = document.createElement("input");
        box.className = "crucible-field crucible-renaming";
        box.value = row.dataset.tag;
        box.setAttribute("aria-label", "Rename");
        button.hidden = true;
        button.before(box);
        box.select();
    }

    function closeRename(box, save) {
        if (!box.isConnected || box.dataset.closed) return;
        box.dataset.closed = "true";
        const row = box.closest("li");
        const {tag} = row.dataset;
        box.remove();
        row.querySelector(".crucible-tagname").hidden = false;
        if (save && box.value.trim() && box.value !== tag) tell({do: "rename", value: tag, to: box.value});
    }

    function filterBy(button, more) {
        const box = document.querySelector(".crucible-edit-filter input");
        const wanted = button.dataset.filter;
        box.value = more && box.value.trim() ? `${box.value.trim()} AND ${wanted}` : wanted;
        box.form.dispatchEvent(new Event("change", {bubbles: true}));
        box.dispatchEvent(new Event("change", {bubbles: true}));
    }

    // --- mouse ----------------------------------------------------------------------------------

    const within = (target, selector) => target.closest?.(`#crucible-edit ${selector}`);

    document.addEventListener("click", (event) => {
        const {target} = event;
        const shot = within(target, ".crucible-shot");
        if (within(target, ".crucible-pen")) openCaption(shot);
        else if (shot && !within(target, "textarea")) {
            focused = nameOf(shot);
            toggle(shot, event.shiftKey);
        } else if (within(target, ".crucible-tagname")) filterBy(target, event.shiftKey);
        else if (within(target, ".crucible-rename")) openRename(target.closest("li"));
        else return;
        event.preventDefault();
    });

    // Shift marks text otherwise.
    document.addEventListener("mousedown", (event) => {
        const shot = within(event.target, ".crucible-shot");
        if (shot && event.shiftKey && !within(event.target, "textarea")) event.preventDefault();
    });

    document.addEventListener("dblclick", (event) => {
        const shot = within(event.target, ".crucible-shot");
        if (!shot || within(event.target, "textarea")) return;
        window.getSelection()?.removeAllRanges();
        openCaption(shot); // its two clicks have picked and unpicked it
    });

    document.addEventListener("focusin", ({target}) => {
        const shot = within(target, ".crucible-shot");
        if (shot) focused = nameOf(shot);
    });

    document.addEventListener("focusout", ({target}) => {
        const close = within(target, ".crucible-shot textarea") ? closeCaption
            : within(target, ".crucible-renaming") ? closeRename : null;
        // One that was taken away with its gallery loses the focus too, and is connected until then.
        if (close) setTimeout(() => document.activeElement !== target && close(target, true));
    });

    // --- keys -----------------------------------------------------------------------------------

    const inSight = () => document.getElementById("crucible-edit")?.offsetParent !== null;
    const typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");

    function inBox(event, close) {
        if (event.key === "Escape") close(event.target, false);
        else if (event.key === "Enter" && !event.shiftKey) close(event.target, true);
        else return;
        event.preventDefault();
        event.stopPropagation();
    }

    function step(shot, key) {
        const all = shots();
        const columns = getComputedStyle(gallery()).gridTemplateColumns.split(" ").length;
        const by = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[key];
        all[all.indexOf(shot) + by]?.focus();
    }

    document.addEventListener("keydown", (event) => {
        const {target, key} = event;
        if (within(target, ".crucible-shot textarea")) return inBox(event, closeCaption);
        if (within(target, ".crucible-renaming")) return inBox(event, closeRename);
        if (!document.getElementById("crucible-edit") || !inSight() || typing(target)) return;
        const shot = within(target, ".crucible-shot");
        const control = event.ctrlKey || event.metaKey;
        if (control && key.toLowerCase() === "z") tell({do: event.shiftKey ? "redo" : "undo"});
        else if (control && key.toLowerCase() === "y") tell({do: "redo"});
        else if (!shot || target !== shot) return;
        else if (control && key.toLowerCase() === "a") tell({do: "all"});
        else if (key === " ") toggle(shot, event.shiftKey);
        else if (key === "Enter" || key === "F2") openCaption(shot);
        else if (key === "Escape") tell({do: "none"});
        else if (key.startsWith("Arrow")) step(shot, key);
        else return;
        event.preventDefault();
    });

    // The field shows the filter that is in force, another than before in another set.
    let bar = null;
    function showFilter() {
        const now = document.querySelector("#crucible-edit .crucible-edit-bar");
        if (now === bar) return;
        bar = now;
        const box = document.querySelector(".crucible-edit-filter input");
        if (bar && box && box !== document.activeElement) box.value = bar.dataset.filter;
    }

    // A gallery made anew gets the focus back, and the caption that is being typed.
    let list = null;
    new MutationObserver(() => {
        showFilter();
        const now = gallery();
        if (now === list) return;
        list = now;
        const open = typed && shots().find((shot) => nameOf(shot) === typed.name);
        if (open) openCaption(open, typed.box); // what was taken away still has its text and caret
        else if (focused && document.activeElement === document.body) {
            shots().find((shot) => nameOf(shot) === focused)?.focus({preventScroll: true});
        }
    }).observe(document.documentElement, {childList: true, subtree: true});
})();
