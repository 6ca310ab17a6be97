// The browser's part of the Training tab, in a WebUI too: looks on while a run is under way, steers
// it, and shows the runs of the past. The run itself lives in the server, so any window can do so.
(() => {
    "use strict";
    const ID = "crucible-training";
    const BUSY = 1000, IDLE = 4000; // ms between two looks
    const SMOOTH = `${ID}-smooth`;
    const COLOURS = ["#2f7fd1", "#b0489c", "#7a8a1f", "#c23b3b", "#6b5fc7", "#0f8b8d"];
    const find = (name) => document.getElementById(`${ID}-${name}`);
    const inSight = () => Boolean(document.getElementById(ID)?.offsetParent);

    // Each part of `inside` is a text node of its own, so that a translation finds its words.
    function el(name, told, ...inside) {
        const made = document.createElement(name);
        for (const [key, value] of Object.entries(told ?? {})) {
            if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
            else if (key in made && typeof value !== "string") made[key] = value;
            else made.setAttribute(key, value);
        }
        made.append(...inside.filter((each) => each !== null && each !== undefined));
        return made;
    }
    const words = (...parts) => parts.filter(Boolean).flatMap((part) => [el("span", {}, part), " "]);
    const own = (text) => el("span", {translate: "no"}, text);

    function clock(seconds) {
        const whole = Math.max(0, Math.round(seconds)), two = (n) => String(n).padStart(2, "0");
        const hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
        return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
    }
    const speed = (each) => (each >= 1 ? [each.toFixed(1), "it/s"] : [(1 / each).toFixed(1), "s/it"]);

    // --- asking ---------------------------------------------------------------------------------

    async function ask(path, method = "GET", order = {}) {
        const told = method === "POST"
            ? {method, headers: {"Content-Type": "application/json"}, body: JSON.stringify(order)}
            : {method};
        const answer = await fetch(`${find("live").dataset.route}/${path}`, told);
        const said = await answer.json().catch(() => ({}));
        if (!answer.ok) throw new Error(said.detail ?? `${answer.status} ${answer.statusText}`);
        return said;
    }

    const NOTHING = {run: "", next: 0, loss: [], validation: [], samples: [], saved: [], said: []};
    let now = {...NOTHING}; // the run as far as this window has seen it
    let away = false; // whether the server did not answer last
    const hidden = new Set(); // curves that are not shown
    const compared = new Map(); // other runs, by name
    let weight = Number(localStorage.getItem(SMOOTH) ?? 0.9);

    async function look() {
        const told = await ask(`status?run=${encodeURIComponent(now.run)}&since=${now.next}`);
        const same = told.run === now.run;
        const loss = same ? now.loss.concat(told.loss ?? []) : told.loss ?? [];
        const ended = now.busy && !told.busy;
        const before = {...now};
        now = {...NOTHING, ...told, loss};
        return {before, same, ended};
    }

    let timer = 0, hurry = 0;
    async function again() {
        clearTimeout(timer);
        if (inSight() && !document.hidden) {
            try {
                const seen = await look();
                away = false;
                show(seen);
                if (seen.ended || !seen.same) await list();
                if (seen.ended) document.getElementById("crucible-refresh")?.click(); // a new card
            } catch (problem) {
                away = true;
                showBar(problem);
            }
            if (find("runs").offsetParent && !listed) await list();
        }
        clearTimeout(timer);
        const soon = now.busy || Date.now() < hurry;
        timer = setTimeout(again, soon && !away ? BUSY : IDLE);
    }

    function soon() {
        hurry = Date.now() + 20000;
        clearTimeout(timer);
        timer = setTimeout(again, 150);
    }

    // An order, and where it is refused: why, beside the buttons.
    async function act(path, method = "POST", order = {}) {
        refused = "";
        try {
            return await ask(path, method, order);
        } catch (problem) {
            refused = problem.message;
            return null;
        } finally {
            soon();
            showBar();
        }
    }
    let refused = "";
    let filesBefore = null; // how many were saved when Save now was pressed in this window

    function saving() {
        const file = now.saved[filesBefore];
        if (file) return `Saved: ${file.name}`;
        return "The file is written after the step that is under way.";
    }

    // --- the run --------------------------------------------------------------------------------

    function build() {
        const live = find("live");
        if (live.firstChild) return;
        live.append(
            el("div", {class: "crucible-training-now"}),
            el("div", {class: "crucible-training-sides"},
                el("section", {class: "crucible-training-curves"},
                    el("div", {class: "crucible-chart-legend"}), el("div", {class: "crucible-chart"})),
                el("section", {class: "crucible-training-samples"})));
        const acts = document.querySelector(`#${ID} .crucible-training-acts`);
        acts.append(...[
            ["pause", "Pause"], ["stop", "Stop and save"], ["save-now", "Save now"],
        ].map(([what, label]) => el("button", {
            type: "button", class: "crucible-press", disabled: true, "data-act": what,
            onclick: ({currentTarget}) => {
                if (what === "save-now") filesBefore = now.saved.length;
                act(currentTarget.dataset.act);
            }}, label)));
    }

    function show({before, same, ended}) {
        build();
        showBar();
        const grown = !same || before.loss.length !== now.loss.length
            || before.validation.length !== now.validation.length;
        if (grown) showCurves();
        const count = ({samples, saved}) => `${samples.length} ${saved.length}`;
        if (!same || ended || count(before) !== count(now)) showSamples();
    }

    function showBar(problem = null) {
        build();
        const {busy, state} = now;
        find("go").disabled = Boolean(busy);
        for (const button of document.querySelectorAll(`#${ID} .crucible-training-acts button`)) {
            button.disabled = !busy;
        }
        const pause = document.querySelector(`#${ID} .crucible-training-acts button`);
        const paused = state === "paused";
        if (pause.dataset.act !== (paused ? "go-on" : "pause")) {
            pause.dataset.act = paused ? "go-on" : "pause";
            pause.textContent = paused ? "Go on" : "Pause";
        }
        const base = document.querySelector(`#${ID} .crucible-training-base b`);
        if (now.base && base.textContent !== now.base) {
            base.textContent = now.base;
            find("based").click(); // other presets suit it
        }
        const place = find("live").firstChild;
        const said = [];
        if (problem) said.push(note(["The server does not answer:", own(problem.message)], "error"));
        if (refused) said.push(note(refused.split("\n"), "error"));
        if (now.run && busy) said.push(bar());
        if (now.run && !busy) said.push(note([ending()], state === "failed" ? "error" : "done"));
        const notes = now.said.map(([, text]) => text).filter((text) => text !== now.message);
        if (busy && now.message) notes.push(now.message);
        if (!busy) filesBefore = null;
        else if (filesBefore !== null && !now.message) notes.push(saving());
        if (notes.length) said.push(note(notes.slice(-4), "note"));
        place.replaceChildren(...said);
        place.setAttribute("data-state", state ?? "");
    }

    function note(texts, kind) {
        const role = kind === "error" ? "alert" : "status";
        return el("ul", {class: `crucible-messages crucible-${kind}`, role},
            ...texts.map((text) => el("li", {}, text)));
    }

    function ending() {
        const line = el("span", {}, own(`${now.name}: `));
        line.append(...words({done: "done.", failed: "failed."}[now.state], now.message));
        return line;
    }

    function bar() {
        const {step, steps, doing, done, of, state} = now;
        const share = steps ? step / steps : 0;
        const parts = [`${step}/${steps}`];
        if (now.per_second && step) parts.push("·", ...speed(now.per_second));
        if (now.seconds_left !== null && step) parts.push(`· ${clock(now.seconds_left)}`, "left");
        if (now.epoch) parts.push("·", "epoch", `${now.epoch}/${now.epochs}`);
        if (now.loss_mean) parts.push("·", "loss", now.loss_mean.toPrecision(3));
        if (state === "paused") parts.unshift("Paused", "·");
        const begun = step > 0 || state === "training";
        if (doing) parts.push("·", doing, ...(of ? [`${done}/${of}`] : ["…"]));
        const shown = begun ? parts : [doing || "Starting …", ...(of ? [`${done}/${of}`] : [])];
        const filled = begun ? share : of ? done / of : 1;
        const made = el("div", {
            class: `crucible-progress${begun || of ? "" : " crucible-unknown"}`, role: "progressbar",
            "aria-valuenow": `${Math.round(filled * 100)}`},
        el("div", {class: "crucible-bar", style: `width:${(filled * 100).toFixed(1)}%`}),
        el("div", {class: "crucible-words"}, own(`${now.name} · `), ...words(...shown)));
        return made;
    }

    // --- curves ---------------------------------------------------------------------------------

    const SERIES = [["raw", "Loss"], ["mean", "Smoothed"], ["held", "Validation"], ["rate", "Learning rate"]];

    function showCurves() {
        const section = document.querySelector(`#${ID} .crucible-training-curves`);
        const [legend, chart] = section.children;
        const others = [...compared.values()];
        section.hidden = !now.loss.length && !now.validation.length && !others.length;
        if (section.hidden) return;
        legend.replaceChildren(
            ...SERIES.map(([kind, label]) => el("button", {
                type: "button", "aria-pressed": String(!hidden.has(kind)),
                onclick: () => {
                    if (!hidden.delete(kind)) hidden.add(kind);
                    showCurves();
                }}, el("i", {class: kind}), el("span", {}, label))),
            ...others.map(({name, colour}) => el("span", {class: "crucible-chart-other"},
                el("i", {style: `background:${colour}`}), own(name))),
            el("label", {}, el("span", {}, "Smoothing"), el("input", {
                type: "range", min: "0", max: "0.99", step: "0.01", value: String(weight),
                oninput: ({target}) => {
                    weight = Number(target.value);
                    localStorage.setItem(SMOOTH, weight);
                    plot(chart);
                }})));
        plot(chart);
    }

    // The curves' place has a width once something is in it, and another beside samples.
    let drawnAt = 0; // pixels
    const sized = new ResizeObserver(([{target}]) => target.clientWidth !== drawnAt && plot(target));

    function plot(chart) {
        drawnAt = chart.clientWidth;
        sized.observe(chart);
        window.crucibleChart.draw(chart, now, [...compared.values()], {weight, hidden});
    }

    // --- samples --------------------------------------------------------------------------------

    const address = ({file}, folder = now.folder) => (
        `${find("live").dataset.route}/runs/${encodeURIComponent(folder)}/samples/${file}`);

    function showSamples() {
        const section = document.querySelector(`#${ID} .crucible-training-samples`);
        section.hidden = !now.samples.length;
        if (section.hidden) return;
        const steps = [...new Set(now.samples.map(({step}) => step))].sort((a, b) => a - b);
        const prompts = new Map(now.samples.map(({number, prompt}) => [number, prompt]));
        const at = new Map(now.samples.map((each) => [`${each.number} ${each.step}`, each]));
        const kept = new Set(now.saved.filter(({final}) => !final).map(({step}) => step));
        const head = el("tr", {}, el("th", {}), ...steps.map((step) => el("th", {scope: "col"},
            ...words("Step", String(step)), kept.has(step) ? use(step) : null)));
        const rows = [...prompts].sort(([a], [b]) => a - b).map(([number, prompt]) => el("tr", {},
            el("th", {scope: "row"}, own(prompt)),
            ...steps.map((step) => {
                const found = at.get(`${number} ${step}`);
                return el("td", {}, found && el("button", {
                    type: "button", title: "Enlarge", onclick: () => enlarge(found)},
                el("img", {src: address(found), alt: `${prompt}, ${step}`})));
            })));
        const scroll = el("div", {class: "crucible-training-scroll"},
            el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
        section.replaceChildren(scroll);
        scroll.scrollLeft = scroll.scrollWidth; // the newest
    }

    const use = (step) => el("button", {
        type: "button", class: "crucible-press", title: "Copies the file of this step to the networks",
        onclick: async ({currentTarget}) => {
            const made = await act(`runs/${encodeURIComponent(now.folder)}/use`, "POST", {step});
            if (made) currentTarget.replaceWith(el("code", {translate: "no"}, `<lora:${made.network}:1>`));
        }}, "Use this one");

    function enlarge(first) {
        // each answer of the server brings them anew
        const row = now.samples.filter(({number}) => number === first.number);
        let place = row.findIndex(({step}) => step === first.step);
        const image = el("img", {alt: ""}), caption = el("p");
        const box = el("dialog", {class: "crucible-training-large", onclick: () => box.close(),
            onclose: () => box.remove(),
            onkeydown: (event) => {
                const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
                if (!by) return;
                event.preventDefault();
                place = (place + by + row.length) % row.length;
                fill();
            }}, image, caption);
        function fill() {
            image.src = address(row[place]);
            caption.replaceChildren(...words("Step", String(row[place].step)), "· ", own(row[place].prompt));
        }
        fill();
        document.body.append(box);
        box.showModal();
    }

    // --- runs of the past -----------------------------------------------------------------------

    let listed = false;

    async function list() {
        const place = document.querySelector(`#${ID} .crucible-training-runs`);
        if (!place?.offsetParent) {
            listed = false;
            return;
        }
        try {
            const {runs} = await ask("runs");
            listed = true;
            if (!runs.length) {
                place.replaceChildren(el("p", {class: "crucible-training-quiet"}, "No runs yet."));
                return;
            }
            const heads = ["Compare", "Name", "Steps", "When", "", ""];
            place.replaceChildren(el("table", {},
                el("thead", {}, el("tr", {}, ...heads.map((each) => el("th", {}, each)))),
                el("tbody", {}, ...runs.map(past))));
        } catch (problem) {
            place.replaceChildren(note([problem.message], "error"));
        }
    }

    function past(run) {
        const path = `runs/${encodeURIComponent(run.name)}`;
        const tick = el("input", {
            type: "checkbox", "aria-label": "Compare", checked: compared.has(run.name),
            onchange: ({target}) => compare(run.name, target.checked)});
        const more = run.state !== null && run.step < run.steps && !run.busy;
        return el("tr", {},
            el("td", {}, tick), el("th", {scope: "row"}, own(run.name)),
            el("td", {}, `${run.step}/${run.steps || "?"}`),
            el("td", {}, new Date(run.changed * 1000).toLocaleString()),
            el("td", {class: "crucible-training-said-last"}, run.message),
            el("td", {},
                more ? el("button", {type: "button", class: "crucible-press",
                    onclick: () => act(`${path}/resume`).then(list)}, "Resume") : null,
                run.busy ? null : el("button", {type: "button", class: "crucible-press",
                    onclick: ({currentTarget}) => remove(currentTarget, path, run.name)}, "Delete")));
    }

    // Asks once more, since nothing brings it back.
    function remove(button, path, name) {
        if (button.dataset.sure) {
            compared.delete(name);
            act(path, "DELETE").then(list);
            return;
        }
        button.dataset.sure = "yes";
        button.textContent = "Really delete?";
        setTimeout(() => {
            delete button.dataset.sure;
            button.textContent = "Delete";
        }, 4000);
    }

    async function compare(name, on) {
        compared.delete(name);
        if (on) {
            const told = await act(`runs/${encodeURIComponent(name)}`, "GET");
            const taken = new Set([...compared.values()].map(({colour}) => colour));
            const colour = COLOURS.find((each) => !taken.has(each)) ?? COLOURS[0];
            if (told) compared.set(name, {...told, colour});
        }
        showCurves();
    }

    // --- fields ---------------------------------------------------------------------------------

    // The button and the TOML follow what stands in the fields; what Check has said does not. It is
    // old from the change on, not from where the page follows: by then it may have been pressed again.
    const follow = () => find("changed").click();
    const age = () => { find("found").dataset.old = "yes"; };
    const form = window.crucibleForm(ID);
    let trains = -1; // the place of "what is trained" among the fields

    // Options that have nothing to do with what is trained are out of sight (see style.css).
    function showKind(values) {
        if (trains >= 0) document.getElementById(ID).dataset.trains = values[trains];
        return values;
    }
    window.crucibleTraining = {
        ...form,
        follow() {
            age();
            setTimeout(follow, 150);
        },
        restore(values, names) {
            setTimeout(follow, 900);
            trains = names.indexOf(`${ID}-train`);
            return showKind(form.restore(values, names));
        },
        remember: (values) => form.remember(showKind(values)),
        reset(values) {
            age();
            setTimeout(follow, 150);
            return form.reset(values);
        },
    };

    window.crucibleChanges(ID, follow, `#${ID}-watch, #${ID}-past, #${ID}-as-toml`, age);
    // Before the page hears of it: gradio makes the button of a tab anew, which is then nowhere.
    document.addEventListener("click", ({target}) => {
        if (target.closest?.(`#${ID}-go`)) {
            refused = "";
            soon();
        } else if (target.closest?.(`#${ID}-check`)) {
            delete find("found").dataset.old;
        } else if (target.closest?.(`#${ID}-past .label-wrap, .tab-nav button`)) soon();
    }, true);
    document.addEventListener("visibilitychange", () => document.hidden || soon());

    // The page is built by another script, after this one.
    const wait = setInterval(() => {
        if (!find("live")) return;
        clearInterval(wait);
        build(); // the first answer may take a while
        again();
    }, 300);
})();
