// The Tagger's rules: what each would change stands at the rule, while one types in it.
(() => {
    "use strict";
    let counts = null;

    function tell() {
        const now = document.querySelector("#crucible-rules .crucible-rule-counts");
        const list = document.querySelector("#crucible-rules .crucible-rule");
        if (now === counts && list?.dataset.told) return;
        counts = now;
        if (list) list.dataset.told = "true";
        for (const each of now?.children ?? []) {
            const rule = document.querySelector(`#crucible-rules form[data-value="${each.dataset.rule}"]`);
            const place = rule?.querySelector(".crucible-rule-told");
            if (!place) continue;
            // What is wrong with a rule as it is typed stays until it is typed otherwise.
            const wrong = place.classList.contains("crucible-wrong");
            if (wrong && now.dataset.changed !== each.dataset.rule) continue;
            place.textContent = each.textContent;
            place.classList.toggle("crucible-wrong", each.dataset.problem === "True");
        }
    }

    document.addEventListener("change", ({target}) => {
        const scope = target.closest?.("#crucible-rules select[name=scope]");
        if (scope) scope.closest("[data-scope]").dataset.scope = scope.value;
    });

    new MutationObserver(tell).observe(document.documentElement, {childList: true, subtree: true});
})();
