// The page of a report: its gallery, filters, keys, and one row in full. In: `pnpRows`, the rows and
// what a state chooses of them, and `pnpElements`. Each change goes through the address.
"use strict";

(() => {
  const PAGE = 24;
  const { STATE, meta, cases, scores, several, titled, asked, scored } = window.pnpRows;
  const { make, picture, absent, slider } = window.pnpElements;
  const $ = (selector) => document.querySelector(selector);
  const filters = $("#filters"), cards = $("#cards"), count = $("#count"), dialog = $("#detail");
  const field = (name) => filters.elements.namedItem(name);
  const VIEWS = several ? ["grid", "cards", "slider"] : ["cards", "slider"];
  const numbers = new Intl.NumberFormat("en");
  let state = { ...STATE };
  let found = [];
  let afterwards = null; // what is to be done once the page has been drawn anew

  const view = () => state.view || VIEWS[0];
  const fits = (made) => window.pnpRows.fits(state, made);
  const address = (changes) => window.pnpRows.address({ ...state, ...changes });

  function go(changes, { replace = false } = {}) {
    const to = address(changes);
    if (to === location.hash) return;
    if (replace) location.replace(to);
    else location.hash = to;
  }

  const pages = () => Math.max(1, Math.ceil(found.length / PAGE));
  const page = () => Math.min(pages(), Math.max(1, Math.floor(Number(state.page)) || 1));

  function views(one, large) {
    const all = [];
    if (one.source) all.push({ name: "guidance image", alt: "guidance image", small: one.small, place: (large && one.source_full) || one.source, otherwise: one.source });
    for (const made of one.made) {
      const place = (large && made.full) || made.thumb;
      if (place) all.push({ name: titled(made), alt: `${titled(made)}: ${one.prompt}`, small: made.small, place, otherwise: made.thumb, made });
    }
    return all;
  }

  // Cards ---------------------------------------------------------------------------------------

  function shown(value) {
    return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : value > 0 ? "∞" : "-∞";
  }

  function told() {
    const chosen = [state.score, state.sort.split(":")[0]].filter((name) => scores.has(name));
    return [...new Set(chosen.length ? chosen : meta.axes)];
  }

  function caption(made) {
    const values = told().filter((name) => scored(made, name) !== null).map((name) => `${scores.get(name).title} ${shown(scored(made, name))}`);
    return [titled(made), ...values].join(" · ");
  }

  function figure(one, made, image, words = caption(made)) {
    const seen = made.thumb ? image : absent(made.kind ?? "picture missing", made.status !== "ok");
    return make("figure", { class: fits(made) ? null : "other" }, seen, make("figcaption", {}, words));
  }

  function figures(one) {
    const source = one.source ? picture(one.source, "guidance image", one.small) : absent("no guidance image");
    const all = [make("figure", {}, source, make("figcaption", {}, "guidance"))];
    for (const made of one.made) all.push(figure(one, made, picture(made.thumb, `${titled(made)}: ${one.prompt}`, made.small)));
    return all;
  }

  // One line of a grid: the guidance image with its prompt, then what each output made of it.
  function line(one) {
    const to = address({ row: one.id });
    const cells = meta.outputs.map((_, number) => {
      const made = one.made.find((other) => other.in === number);
      if (!made) return make("figure", {}, absent("no row"));
      const image = picture(made.thumb, `${titled(made)}: ${one.prompt}`, made.small);
      const values = told().map((name) => (scored(made, name) === null ? "–" : shown(scored(made, name))));
      return figure(one, made, make("a", { href: to, tabindex: -1 }, image), values.join(" · "));
    });
    const source = one.source ? picture(one.source, "guidance image", one.small) : absent("no guidance image");
    const title = make("a", { class: "title", href: to }, one.prompt || "no prompt");
    return make("li", { class: "card line" }, make("div", { class: "first" }, source, title, make("p", { class: "id" }, one.id)), ...cells);
  }

  function heads() {
    const names = told().map((name) => scores.get(name).title);
    const first = make("span", { class: "first" }, "guidance", names.length ? make("small", {}, names.join(" · ")) : null);
    return make("li", { class: "heads" }, first, ...meta.outputs.map((name) => make("span", {}, name)));
  }

  function card(one) {
    const both = views(one, false);
    const parted = view() === "slider" && one.source && both.length > 1;
    const pictures = parted
      ? make("div", { class: "pictures parted" }, ...one.made.map((made) => figure(one, made, slider(both[0], both.find((view) => view.made === made) ?? both[0]))))
      : make("div", { class: "pictures" }, ...figures(one));
    const failed = one.made.find((made) => made.message && fits(made));
    return make("li", { class: "card" }, pictures,
      make("a", { class: "title", href: address({ row: one.id }) }, one.prompt || "no prompt"),
      make("p", { class: "id" }, one.id),
      failed ? make("p", { class: "message" }, `${failed.kind}: ${failed.message}`) : null);
  }

  function paging(nav) {
    const now = page(), last = pages();
    const step = (words, to, label) => make("button", { type: "button", disabled: to < 1 || to > last, "aria-label": label, onclick: () => turn(to) }, words);
    const jump = make("input", { type: "number", min: 1, max: last, value: now, "aria-label": `Page, of ${last}`, onchange: (event) => turn(Number(event.target.value) || 1) });
    nav.replaceChildren(step("‹", now - 1, "Previous page"), make("span", {}, jump, ` of ${numbers.format(last)}`), step("›", now + 1, "Next page"));
    nav.hidden = last === 1;
  }

  function turn(to) {
    go({ page: String(Math.min(pages(), Math.max(1, to))) });
    $("#gallery").scrollIntoView();
  }

  function drawn() {
    const begin = (page() - 1) * PAGE;
    const here = found.slice(begin, begin + PAGE);
    const grid = view() === "grid";
    cards.classList.toggle("grid", grid);
    cards.style.setProperty("--outputs", meta.outputs.length);
    cards.replaceChildren(...(grid ? [heads(), ...here.map(line)] : here.map(card)));
    const range = here.length ? `${numbers.format(begin + 1)} to ${numbers.format(begin + here.length)} of ` : "";
    const rest = found.length === cases.length ? "" : `, chosen from ${numbers.format(cases.length)}`;
    const lost = meta.cases === cases.length ? "" : ` Only ${cases.length} of ${meta.cases} rows could be loaded: files beside the page are missing.`;
    count.textContent = `${range}${numbers.format(found.length)} rows${rest}.${lost}`;
    document.querySelectorAll(".pages").forEach(paging);
  }

  // One row in full -----------------------------------------------------------------------------

  function facts(one) {
    const columns = one.made.map((made) => {
      const rows = [["status", made.status]];
      if (made.kind) rows.push(["error", `${made.kind}: ${made.message}`]);
      rows.push(["method", made.method]);
      for (const [name, score] of scores) {
        const value = scored(made, name);
        if (value !== null) rows.push([score.title, shown(value)]);
        else if (made.why?.[name]) rows.push([score.title, `n/a: ${made.why[name]}`]);
      }
      return new Map([...rows, ...meta.parameters[made.parameters], ...made.facts, ...made.extra]);
    });
    const names = [...new Set(columns.flatMap((column) => [...column.keys()]))];
    const lines = names.map((name) => {
      const values = columns.map((column) => column.get(name) ?? "–");
      const differ = new Set(values).size > 1;
      return make("tr", { class: differ ? "differ" : null }, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, value)));
    });
    const head = several ? [make("thead", {}, make("tr", {}, make("td"), ...one.made.map((made) => make("th", { scope: "col" }, meta.outputs[made.in]))))] : [];
    return make("div", { class: "wide" }, make("table", { class: "facts" }, ...head, make("tbody", {}, ...lines)));
  }

  function comparison(one) {
    const all = views(one, true);
    if (!all.length) return absent(one.made[0]?.kind ?? "no picture", one.made[0]?.status !== "ok");
    if (all.length === 1) return make("div", { class: "stage" }, picture(all[0].place, all[0].alt, all[0].small, { lazy: false, otherwise: all[0].otherwise }));
    const stage = make("div", { class: "stage" });
    const pick = (label, chosen) => make("label", {}, label, " ", make("select", { onchange: () => put() }, ...all.map((view, n) => make("option", { value: n, selected: n === chosen }, view.name))));
    const left = pick("left", 0), right = pick("right", 1);
    const put = () => stage.replaceChildren(slider(...[left, right].map((label) => all[label.querySelector("select").value]), false));
    put();
    return make("div", {}, stage, all.length > 2 ? make("p", { class: "picks" }, left, right) : null);
  }

  function links(one) {
    const all = [];
    if (one.source) all.push(make("a", { href: one.source_full ?? one.source, target: "_blank" }, "guidance image as it went to work"));
    for (const made of one.made) if (made.full) all.push(make("a", { href: made.full, target: "_blank" }, several ? `picture of ${meta.outputs[made.in]}` : "picture"));
    all.push(make("a", { href: `#${new URLSearchParams({ row: one.id })}` }, "link to this row"));
    return make("p", { class: "links" }, ...all);
  }

  function detailed() {
    const at = found.findIndex((one) => one.id === state.row);
    const one = found[at] ?? cases.find((other) => other.id === state.row);
    if (!one) {
      if (state.row) count.textContent = `No row ${state.row} here.`;
      if (dialog.open) dialog.close();
      return;
    }
    const move = (words, to, label) => make("button", { type: "button", disabled: at < 0 || !found[to], "aria-label": label, onclick: () => open(to) }, words);
    dialog.replaceChildren(
      make("div", { class: "head" },
        make("h2", { id: "detail-title", tabindex: -1 }, one.prompt || "no prompt"),
        make("div", { class: "moves" }, move("‹", at - 1, "Previous row (k)"), move("›", at + 1, "Next row (j)"),
          make("button", { type: "button", class: "close", "aria-label": "Close (Escape)", onclick: () => go({ row: "" }) }, "✕"))),
      make("p", { class: "id" }, one.id),
      make("div", { class: "body" }, comparison(one), make("div", {}, links(one), facts(one))));
    if (!dialog.open) dialog.showModal();
    (dialog.querySelector("input[type=range]") ?? dialog.querySelector(".close")).focus();
    dialog.scrollTop = 0;
  }

  function open(at) {
    if (found[at]) go({ row: found[at].id, page: String(Math.floor(at / PAGE) + 1) }, { replace: true });
  }

  // Keys ----------------------------------------------------------------------------------------

  const titles = () => [...cards.querySelectorAll(".title")];

  function across() {
    const tops = [...cards.children].map((one) => one.offsetTop);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  }

  function focusAt(number) {
    const all = titles();
    if (number < 0 && page() > 1) {
      go({ page: String(page() - 1) });
      afterwards = () => titles().at(-1)?.focus();
    } else if (number >= all.length && page() < pages()) {
      go({ page: String(page() + 1) });
      afterwards = () => titles()[0]?.focus();
    } else all[Math.min(all.length - 1, Math.max(0, number))]?.focus();
  }

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const input = event.target.closest("input, select");
    const steps = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: "down", ArrowUp: "up" };
    const arrow = event.key.startsWith("Arrow");
    if (input && (arrow || input.type !== "range")) return;
    if (event.key === "/" && !dialog.open) {
      event.preventDefault();
      field("q").focus();
      return;
    }
    if (!(event.key in steps)) return;
    const step = { down: across(), up: -across() }[steps[event.key]] ?? steps[event.key];
    if (dialog.open) {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") return; // they scroll
      open(found.findIndex((one) => one.id === state.row) + step);
    } else {
      const at = titles().indexOf(document.activeElement);
      if (arrow && at < 0) return; // they scroll until a card is chosen
      focusAt(at < 0 ? 0 : at + step);
    }
    event.preventDefault();
  }

  // Filters -------------------------------------------------------------------------------------

  function options(select, pairs) {
    select.replaceChildren(...pairs.map(([value, words]) => make("option", { value }, words)));
    select.closest("label, fieldset").hidden = pairs.length < 2;
  }

  function prepare() {
    const made = cases.flatMap((one) => one.made);
    const counts = (values) => {
      const counted = new Map();
      for (const value of values) counted.set(value, (counted.get(value) ?? 0) + 1);
      return [...counted].sort().map(([value, times]) => [value, `${value} (${numbers.format(times)})`]);
    };
    const kinds = made.map((one) => one.kind).filter(Boolean);
    options(field("status"), [["", "any"], ...counts(made.map((one) => one.status)), ...counts(kinds)]);
    const methods = counts(made.map((one) => one.method));
    options(field("method"), methods.length > 1 ? [["", "any"], ...methods] : []);
    options(field("output"), several ? [["", "any"], ...meta.outputs.map((name) => [name, name])] : []);
    options(field("view"), VIEWS.map((name, n) => [n ? name : "", { grid: "grid", cards: "side by side", slider: "slider" }[name]]));
    options(field("score"), scores.size ? [["", "any"], ...[...scores.values()].map((score) => [score.name, score.title])] : []);
    options(field("sort"), [["", "as in the manifest"], ...[...scores.values()].flatMap((score) => {
      const high = [`${score.name}:desc`, `${score.title}, ${score.better === "higher" ? "best" : "highest"} first`];
      const low = [`${score.name}:asc`, `${score.title}, ${score.better === "lower" ? "best" : "lowest"} first`];
      return score.better === "lower" ? [low, high] : [high, low];
    })]);
  }

  function fill() {
    for (const name of ["q", "status", "method", "output", "score", "min", "max", "sort", "view"]) {
      const typing = field(name) === document.activeElement && field(name).tagName === "INPUT";
      if (!typing) field(name).value = state[name];
    }
    field("min").disabled = field("max").disabled = !state.score;
  }

  function changed(event) {
    const name = event.target.name;
    if (!(name in STATE)) return;
    const typed = event.type === "input" && event.target.tagName === "INPUT";
    go({ [name]: event.target.value, page: "1", row: "" }, { replace: typed });
  }

  function update() {
    if (cards.firstChild && location.hash && !location.hash.includes("=")) return; // a place on the page
    const before = state;
    state = asked();
    const same = Object.keys(STATE).every((name) => name === "row" || state[name] === before[name]);
    if (!same || !cards.firstChild) {
      found = window.pnpRows.choose(state);
      drawn();
    }
    fill();
    detailed();
    afterwards?.();
    afterwards = null;
    if (!state.row && before.row) titles().find((title) => new URLSearchParams(title.hash.slice(1)).get("row") === before.row)?.focus();
  }

  prepare();
  filters.addEventListener("input", changed);
  filters.addEventListener("change", changed);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", (event) => {
    event.preventDefault();
    go({ ...STATE, view: state.view });
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    go({ row: "" });
  });
  dialog.addEventListener("close", () => {
    if (state.row) go({ row: "" }); // a second Escape closes whatever the page says
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) go({ row: "" });
  });
  $("#failures")?.addEventListener("click", (event) => {
    if (event.target.hash?.startsWith("#status=")) afterwards = () => $("#gallery").scrollIntoView();
  });
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", update);
  update();
})();
