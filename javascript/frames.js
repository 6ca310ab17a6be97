// In a WebUI: our tabs are pages of their own in frames. Each is asked for when its tab is first
// opened, in the WebUI's own light or dark, and is as high as the window below it.
(() => {
    "use strict";
    if (window.crucible_page || typeof window.onUiLoaded !== "function") return;
    const LEAST = 480; // pixels

    function fit(frame) {
        const above = frame.getBoundingClientRect().top + window.scrollY;
        frame.style.height = `${Math.max(LEAST, Math.floor(window.innerHeight - above - 4))}px`;
    }

    const shown = () => [...document.querySelectorAll("iframe.crucible-frame[src]")].filter(
        (frame) => frame.offsetParent !== null);

    window.onUiLoaded(() => {
        const seen = new IntersectionObserver((entries) => {
            for (const {isIntersecting, target} of entries) {
                if (!isIntersecting) continue;
                if (!target.src) {
                    const theme = document.body.classList.contains("dark") ? "dark" : "light";
                    target.src = `${target.dataset.page}?__theme=${theme}`;
                }
                fit(target);
            }
        });
        for (const frame of document.querySelectorAll("iframe.crucible-frame")) seen.observe(frame);
        window.addEventListener("resize", () => shown().forEach(fit));
    });
})();
