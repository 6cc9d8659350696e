// Elements of the report's page. What they are given becomes text or an attribute, never markup.
"use strict";

window.pnpElements = (() => {
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  // Where a full picture is not there any more, as its report was moved, its small copy stands in.
  function picture(place, alt, small, { lazy = true, otherwise = null } = {}) {
    const instead = (event) => {
      if (otherwise && !event.target.src.endsWith(otherwise)) event.target.src = otherwise;
    };
    return make("img", { onerror: instead, src: place, alt, class: small ? "small" : null, loading: lazy ? "lazy" : null, decoding: "async" });
  }

  function absent(words, failed = false) {
    return make("div", { class: failed ? "absent failed" : "absent" }, words);
  }

  // Two pictures over one another; a range input, which fingers, mice and keys know, parts them.
  function slider(before, after, lazy = true) {
    const [below, above] = [after, before].map((one) => picture(one.place, one.alt, one.small, { lazy, otherwise: one.otherwise }));
    const box = make("div", { class: "compare" }, below, above, make("span", { class: "handle", "aria-hidden": "true" }));
    const range = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": `Before and after: ${before.name} up to here, then ${after.name}` });
    const put = () => {
      box.style.setProperty("--at", `${range.value}%`);
      range.setAttribute("aria-valuetext", `${range.value} % ${before.name}`);
    };
    range.addEventListener("input", put);
    put();
    box.append(range);
    return box;
  }

  return { make, picture, absent, slider };
})();
