// A reload of the standalone page comes back to the tabs that were open, and so to a run or a folder
// that one was looking at. A new window begins at the first tab.
(() => {
    "use strict";
    const KEY = "crucible-last-tabs";
    const TABS = '#crucible-tabs button[role="tab"][id^="crucible-"]';
    const open = () => [...document.querySelectorAll(`${TABS}[aria-selected="true"]`)];

    function keep() {
        sessionStorage.setItem(KEY, JSON.stringify(open().map(({id}) => id)));
    }

    function comeBack() {
        for (const id of JSON.parse(sessionStorage.getItem(KEY) ?? "[]")) {
            document.getElementById(id)?.click();
        }
        // Captured, for gradio makes the buttons anew at a click.
        document.addEventListener("click", (event) => {
            if (event.target.closest(TABS)) setTimeout(keep, 100);
        }, true);
    }

    document.addEventListener("DOMContentLoaded", () => {
        new MutationObserver((_, watch) => {
            if (!open().length) return;
            watch.disconnect();
            setTimeout(comeBack);
        }).observe(document.body, {childList: true, subtree: true});
    });
})();
