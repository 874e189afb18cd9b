// What the pages do in a browser beyond being read: charts, changes, live parts, keys. Written by hand, no build
// step. Rules live on the server: a change is a call of the admin API, and what it refuses is shown as it says it.
"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // ---- charts: a canvas names the element that holds its data ------------------------------------------------
  const numbers = {
    usd: new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumSignificantDigits: 6 }),
    count: new Intl.NumberFormat("en", { maximumFractionDigits: 1 }),
    short: new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }),
  };
  const written = (unit, value) => {
    if (value === null || value === undefined) return "not known";
    if (Array.isArray(value)) return value.map((one) => written(unit, one)).join(" to ");
    if (unit === "usd") return numbers.usd.format(value);
    if (unit === "ratio") return `${numbers.count.format(value * 100)} %`;
    return unit === "count" ? numbers.count.format(value) : `${numbers.count.format(value)} ${unit}`;
  };
  const onAxis = (unit, value) => {
    if (unit === "ratio") return `${numbers.short.format(value * 100)} %`;
    return unit === "usd" ? `$${numbers.short.format(value)}` : numbers.short.format(value);
  };

  function dataset(series, index, stacked) {
    const colour = series.tone ? css(`--${series.tone}`) : css(`--series-${(index % 8) + 1}`);
    const base = { label: series.label, data: series.values, borderColor: colour, backgroundColor: colour };
    if (series.kind === "bar") return { ...base, type: "bar", grouped: !series.overlaid, stack: stacked ? "all" : undefined, maxBarThickness: 36 };
    const band = series.kind === "band";
    return {
      ...base,
      type: "line",
      borderWidth: band ? 0 : 2,
      borderDash: series.dashed ? [5, 4] : [],
      pointRadius: series.values.length > 40 || band ? 0 : 2,
      pointHitRadius: 8,
      tension: 0,
      backgroundColor: band ? `${colour}33` : colour,
      fill: band ? (series.from === undefined ? "-1" : series.from) : false,
      spanGaps: false,
    };
  }

  function draw(canvas) {
    const spec = JSON.parse(byId(canvas.dataset.chart).textContent);
    Chart.getChart(canvas)?.destroy();
    const soft = css("--soft");
    const line = css("--line");
    const across = spec.horizontal ? "y" : "x";
    const along = spec.horizontal ? "x" : "y";
    const chart = new Chart(canvas, {
      type: "bar",
      data: { labels: spec.labels, datasets: spec.series.map((one, index) => dataset(one, index, spec.stacked)) },
      options: {
        indexAxis: spec.horizontal ? "y" : "x",
        animation: false,
        responsive: true,
        maintainAspectRatio: false,
        interaction: { mode: "index", axis: across, intersect: false },
        scales: {
          [across]: { stacked: spec.stacked, grid: { display: false }, ticks: { color: soft, maxRotation: 0, autoSkip: !spec.horizontal } , title: { display: Boolean(spec.across), text: spec.across, color: soft } },
          [along]: {
            stacked: spec.stacked,
            type: spec.logarithmic ? "logarithmic" : "linear",
            beginAtZero: true,
            grid: { color: line },
            ticks: { color: soft, callback: (value) => onAxis(spec.unit, value), maxTicksLimit: 6 },
          },
        },
        plugins: {
          legend: {
            display: spec.series.length > 1,
            position: "bottom",
            labels: { color: css("--text"), boxWidth: 12, filter: (item) => spec.series[item.datasetIndex].kind !== "band" || !spec.series[item.datasetIndex].hidden },
          },
          tooltip: { callbacks: { label: (item) => `${item.dataset.label}: ${written(spec.unit, item.raw)}` } },
        },
        onClick: (event, _items, on) => {
          if (!spec.links) return;
          const found = on.getElementsAtEventForMode(event, "index", { axis: across, intersect: false }, false);
          if (found.length && spec.links[found[0].index]) location.assign(spec.links[found[0].index]);
        },
      },
    });
    canvas.classList.toggle("clickable", Boolean(spec.links));
    return chart;
  }

  function drawAll(within) {
    if (typeof Chart === "undefined") return;
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    within.querySelectorAll("canvas[data-chart]").forEach(draw);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(document));

  // ---- changes: a form that names a call of the admin API -----------------------------------------------------
  function fieldValue(field) {
    if (field.type === "checkbox") return field.checked;
    const text = field.dataset.keep === undefined ? field.value.trim() : field.value;
    if (text === "") return field.dataset.empty === "null" ? null : undefined;
    if (field.dataset.type === "integer") return number(text, true);
    if (field.dataset.type === "number") return number(text, false);
    if (field.dataset.type === "integers") return text.split(/[\s,]+/).filter(Boolean).map((one) => number(one, true));
    if (field.dataset.type === "pairs") return pairs(text);
    if (field.dataset.type === "list") return text.split(/[\s,]+/).filter(Boolean);
    if (field.dataset.type === "json") return JSON.parse(text);
    return text;
  }

  // Never a guess: 10,000 is ten to one reader and ten thousand to another.
  function number(text, isWhole) {
    const found = Number(text);
    if (!Number.isFinite(found) || (isWhole && !Number.isInteger(found))) {
      throw new Error(`Write a ${isWhole ? "whole " : ""}number without separators, such as ${isWhole ? 10000 : 2.5}, not ${text}.`);
    }
    return found;
  }

  // `name=value`, divided by commas or lines.
  function pairs(text) {
    const found = {};
    for (const one of text.split(/[\n,]+/).map((part) => part.trim()).filter(Boolean)) {
      const [name, ...value] = one.split("=");
      if (!value.length) throw new Error(`Write name=value, not ${one}.`);
      found[name.trim()] = value.join("=").trim();
    }
    return found;
  }

  function put(body, name, value) {
    const path = name.split(".");
    const last = path.pop();
    const within = path.reduce((part, step) => (part[step] ??= {}), body);
    within[last] = value;
  }

  async function bodyOf(form) {
    const body = {};
    for (const field of form.elements) {
      if (!field.name || field.disabled || (field.type === "radio" && !field.checked)) continue;
      if (field.type === "file") {
        if (!field.files.length) continue;
        put(body, field.name, await textOf(field.files[0]));
        if (field.dataset.nameAs) put(body, field.dataset.nameAs, field.files[0].name);
        continue;
      }
      const value = fieldValue(field);
      if (value !== undefined) put(body, field.name, value);
    }
    return body;
  }

  async function textOf(file) {
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    } catch {
      throw new Error(`${file.name} is not UTF-8 text: save it as CSV in UTF-8 and send it again.`);
    }
  }

  async function call(method, path, body, headers = {}, { stays = false } = {}) {
    const isText = typeof body === "string";
    const answer = await fetch(path, {
      method,
      headers: { "content-type": isText ? "text/plain" : "application/json", "x-tollgate-console": "1", ...headers },
      body: body === undefined ? undefined : isText ? body : JSON.stringify(body),
    });
    const text = await answer.text();
    let json = null;
    try {
      json = text ? JSON.parse(text) : null;
    } catch {
      json = null;
    }
    if (answer.ok) return json;
    if (answer.status === 401) {
      // What somebody writes is not thrown away because the login has ended.
      if (stays) throw new Error("Your login has ended. Log in again in another tab; what you wrote is still here.");
      location.assign("/console/login");
    }
    const error = new Error(json?.error?.message ?? `The gateway answered with ${answer.status}. Try again.`);
    error.answer = json;
    throw error;
  }

  function tell(form, message) {
    let alert = form.querySelector(":scope > .alert");
    if (!alert) {
      alert = document.createElement("p");
      alert.className = "alert";
      alert.setAttribute("role", "alert");
      form.append(alert);
    }
    alert.textContent = message;
    alert.hidden = !message;
  }

  function ask(question) {
    const dialog = byId("confirm");
    byId("confirm-text").textContent = question;
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
  }

  function notice(text) {
    sessionStorage.setItem("notice", text);
  }

  function showSecret(form, answer) {
    const dialog = byId("secret");
    byId("secret-title").textContent = form.dataset.showTitle ?? "Shown once";
    const secret = answer[form.dataset.show];
    byId("secret-value").textContent = secret;
    // A line that works when it is pasted, where the form has one.
    const command = (form.dataset.command ?? "").replaceAll("{secret}", secret).replaceAll("{origin}", location.origin);
    byId("secret-command").textContent = command;
    byId("secret-use").hidden = !command;
    dialog.showModal();
    dialog.addEventListener("close", () => after(form, answer), { once: true });
  }

  function after(form, answer) {
    if (form.dataset.done) notice(form.dataset.done);
    if (form.dataset.then) {
      location.assign(form.dataset.then.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(answer?.[name] ?? "")));
    } else {
      location.reload();
    }
  }

  async function submitted(form) {
    if (form.dataset.confirm && !(await ask(form.dataset.confirm))) return;
    const [method, path] = form.dataset.api.split(" ");
    const buttons = form.querySelectorAll("button");
    tell(form, "");
    buttons.forEach((button) => (button.disabled = true));
    form.setAttribute("aria-busy", "true");
    try {
      const answer = await call(method, path, method === "DELETE" ? undefined : await bodyOf(form));
      if (form.dataset.show) showSecret(form, answer);
      else after(form, answer);
    } catch (error) {
      tell(form, error.message);
    } finally {
      buttons.forEach((button) => (button.disabled = false));
      form.removeAttribute("aria-busy");
    }
  }

  document.addEventListener("submit", (event) => {
    if (!event.target.dataset.api) return;
    event.preventDefault();
    submitted(event.target);
  });
  document.addEventListener("change", (event) => {
    const form = event.target.form;
    if (form?.dataset.auto !== undefined) form.requestSubmit();
  });

  // ---- what is pressed ----------------------------------------------------------------------------------------
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-open], [data-close], [data-pause]");
    if (!button) return;
    if (button.dataset.open) byId(button.dataset.open).showModal();
    if (button.dataset.close !== undefined) button.closest("dialog").close();
    if (button.dataset.pause !== undefined) {
      const paused = document.body.classList.toggle("paused");
      button.textContent = paused ? "Resume" : "Pause";
    }
    if (button.dataset.copy) {
      const text = byId(button.dataset.copy).textContent.trim();
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(byId(button.dataset.copy));
        button.textContent = "Selected: press Ctrl+C";
      }
    }
  });

  let started = false;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, [contenteditable], .ace_editor");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "?") {
      byId("help")?.showModal();
    } else if (event.key === "/") {
      const field = document.querySelector("[data-search]");
      if (field) {
        event.preventDefault();
        field.focus();
      }
    } else if (started) {
      document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`)?.click();
    }
    started = event.key === "g";
  });

  // ---- live parts ---------------------------------------------------------------------------------------------
  document.addEventListener("htmx:beforeRequest", (event) => {
    const live = event.target.matches("[data-live]");
    if (live && (document.hidden || document.body.classList.contains("paused"))) event.preventDefault();
  });
  for (const name of ["htmx:responseError", "htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, (event) => {
      if (event.target.matches("[data-live]")) {
        document.body.classList.add("stale");
      } else {
        event.target.innerHTML = "";
        event.target.classList.remove("loading");
        tell(event.target, "This part could not be loaded. Reload the page to try again.");
      }
    });
  }
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful) document.body.classList.remove("stale");
  });
  document.addEventListener("htmx:load", (event) => drawAll(event.target));

  document.addEventListener("DOMContentLoaded", () => {
    drawAll(document);
    const text = sessionStorage.getItem("notice");
    sessionStorage.removeItem("notice");
    const place = byId("notice");
    if (text && place) {
      place.textContent = text;
      place.hidden = false;
    }
  });

  window.tollgate = { call, ask, notice, tell, drawAll };
})();
