// Fields of a tab that keep their values over a reload, by their names, in this browser. Options that
// are not at their default are marked, with a button that puts them back.
(() => {
    "use strict";
    const SETTLED = 800; // ms in which the fields report their first values as changes
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    function recall(key) {
        try {
            return JSON.parse(localStorage.getItem(key)) ?? {};
        } catch (unreadable) {
            return {};
        }
    }

    // `id` is that of the tab; its hidden button `<id>-reset` asks the page for `reset`.
    window.crucibleForm = (id) => {
        const kept = recall(id);
        const form = {names: null, defaults: null, settled: false, latest: null, reset: null};

        function keep() {
            if (!form.latest || !form.names) return;
            form.names.forEach((name, place) => { kept[name] = form.latest[place]; });
            try {
                localStorage.setItem(id, JSON.stringify(kept));
            } catch (refused) {
                console.info("Crucible: this browser keeps no values between visits.", refused);
            }
        }

        function mark(values) {
            form.names.forEach((name, place) => {
                const field = document.getElementById(name);
                if (!field?.classList.contains("crucible-option")) return;
                const moved = !same(values[place], form.defaults[place]);
                field.classList.toggle("crucible-moved", moved);
                const button = field.querySelector(":scope > .crucible-reset");
                if (moved === Boolean(button)) return;
                if (!moved) return void button.remove();
                const made = document.createElement("button");
                Object.assign(made, {
                    className: "crucible-reset", type: "button", textContent: "↺", title: "Reset"});
                made.onclick = () => {
                    form.reset = name;
                    document.getElementById(`${id}-reset`).click();
                };
                field.append(made);
            });
        }

        return {
            // What the fields begin with: what this browser kept, else `values` as the page has them.
            restore(values, names) {
                form.names = names;
                form.defaults = values;
                setTimeout(() => {
                    form.settled = true;
                    if (form.latest) keep();
                }, SETTLED);
                const found = names.map(
                    (name, i) => (Object.hasOwn(kept, name) ? kept[name] : values[i]));
                setTimeout(() => mark(form.latest ?? found), SETTLED);
                return found;
            },

            // The values as they are now.
            remember(values) {
                form.latest = values;
                if (!form.names) return values;
                mark(values);
                if (form.settled) keep();
                return values;
            },

            // The values again, one of them as it was at first.
            reset(values) {
                const place = form.names.indexOf(form.reset);
                const again = values.map((value, i) => (i === place ? form.defaults[i] : value));
                mark(again);
                return again;
            },
        };
    };

    // Has `follow` called when what is typed or chosen in a tab pauses, and `first` at once; `but`
    // selects parts of it that do not count.
    window.crucibleChanges = (id, follow, but = "", first = () => {}) => {
        let pause = 0;
        function changed({target}) {
            if (!target.closest?.(`#${id}`) || (but && target.closest(but))) return;
            if (target.classList.contains("crucible-option-search")) return;
            first();
            clearTimeout(pause);
            pause = setTimeout(follow, 350);
        }
        document.addEventListener("input", changed);
        document.addEventListener("change", changed);
        // A list of choices tells of a choice by a click alone.
        document.addEventListener("mousedown", ({target}) => {
            const choice = target.closest?.(`#${id} ul.options li, #${id} .options .item`);
            if (choice) changed({target: choice});
        });
    };
})();
