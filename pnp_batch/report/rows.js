// The rows of a report: what its data scripts have pushed, and which of them a state chooses. The
// hash of the address holds the state, so that links, reloading and the back button keep it.
"use strict";

window.pnpRows = (() => {
  const STATE = { q: "", status: "", method: "", output: "", score: "", min: "", max: "", sort: "", view: "", page: "1", row: "" };
  const meta = JSON.parse(document.querySelector("#meta").textContent);
  const cases = window.pnpCases ?? [];
  const scores = new Map(meta.scores.map((score) => [score.name, score]));
  const several = meta.outputs.length > 1;

  for (const one of cases) one.text = `${one.prompt}\n${one.id}`.toLowerCase();

  const titled = (made) => (several ? `${meta.outputs[made.in]}: ` : "") + (made.method || "output");

  function asked() {
    const given = new URLSearchParams(location.hash.slice(1));
    return Object.fromEntries(Object.keys(STATE).map((name) => [name, given.get(name) ?? STATE[name]]));
  }

  function address(state) {
    const told = new URLSearchParams();
    for (const [name, value] of Object.entries(state)) {
      if (name === "page" || value !== STATE[name]) told.set(name, value);
    }
    return `#${told}`;
  }

  const scored = (made, name) => (made.scores && name in made.scores ? Number(made.scores[name]) : null);

  function fits(state, made) {
    if (state.status && made.status !== state.status && made.kind !== state.status) return false;
    if (state.method && made.method !== state.method) return false;
    if (state.output && meta.outputs[made.in] !== state.output) return false;
    if (!state.score) return true;
    const value = scored(made, state.score);
    if (value === null) return false;
    return !(state.min !== "" && value < Number(state.min)) && !(state.max !== "" && value > Number(state.max));
  }

  function choose(state) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = cases.filter((one) => words.every((word) => one.text.includes(word)) && one.made.some((made) => fits(state, made)));
    const [name, order] = state.sort.split(":");
    if (!scores.has(name)) return chosen;
    const sign = order === "asc" ? 1 : -1;
    const keyed = chosen.map((one) => {
      const values = one.made.filter((made) => fits(state, made)).map((made) => scored(made, name)).filter((value) => value !== null);
      return [values.length ? Math.min(...values.map((value) => sign * value)) : Infinity, values.length === 0, one];
    });
    keyed.sort((a, b) => a[1] - b[1] || (a[0] === b[0] ? 0 : a[0] - b[0]));
    return keyed.map(([, , one]) => one);
  }

  return { STATE, meta, cases, scores, several, titled, asked, address, scored, fits, choose };
})();
