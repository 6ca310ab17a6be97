// In a WebUI: a second click on a network's card takes its tag out of the prompt also when the tag
// has more arguments than a number, such as <lora:name:0.8:0.6> or <lora:name:te=0.5>.
(() => {
    "use strict";
    if (typeof window.tryToRemoveExtraNetworkFromPrompt !== "function") return;
    const remove = window.tryToRemoveExtraNetworkFromPrompt;
    if (remove.crucible) return;
    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

    window.tryToRemoveExtraNetworkFromPrompt = (textarea, text, isNegative) => {
        const added = isNegative ? null : text.match(/<lora:([^:>]+):/);
        if (added) {
            // Written as the card writes it, which is what the WebUI looks for.
            const tag = new RegExp(`<(?:lora|lyco):${escaped(added[1])}(?::[^>]*)?>`, "g");
            textarea.value = textarea.value.replace(tag, () => `<lora:${added[1]}:1>`);
        }
        return remove(textarea, text, isNegative);
    };
    window.tryToRemoveExtraNetworkFromPrompt.crucible = true;
})();
