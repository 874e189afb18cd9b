// The policy editor: Ace over a plain text field, completion by the schema, the server's findings at their lines,
// and the steps from a draft to what is in force. Every answer comes from the admin API; nothing is decided here.
"use strict";

(() => {
  const { ask, notice, tell } = window.tollgate;
  // An ended login is told here and leads nowhere: what somebody writes stays.
  const call = (method, path, body) => window.tollgate.call(method, path, body, {}, { stays: true });
  const API = "/admin/v1/policies";
  const byId = (id) => document.getElementById(id);
  const CHECK_AFTER_MS = 400;
  const AGAIN_AFTER_MS = 2000;
  const data = JSON.parse(byId("editor-data").textContent);
  const source = byId("draft");
  let expected = data.expected;

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  function table(columns, rows, caption) {
    const head = make("tr", {}, ...columns.map((name) => make("th", { scope: "col" }, name)));
    const body = rows.map((cells) =>
      make("tr", {}, ...cells.map((cell, index) => (index ? make("td", { "data-label": columns[index] }, cell) : make("th", { scope: "row" }, cell)))),
    );
    return make("table", { class: "stack whole" }, caption ? make("caption", { class: "away" }, caption) : null, make("thead", {}, head), make("tbody", {}, ...body));
  }

  // ---- the editor ---------------------------------------------------------------------------------------------
  ace.config.set("useStrictCSP", true);
  ace.config.set("loadWorkerFromBlob", false);
  const place = byId("editor");
  place.hidden = false;
  source.hidden = true;
  place.style.lineHeight = "1.5"; // with less, underscores are cut off
  const editor = ace.edit(place);
  const theme = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "ace/theme/github_dark" : "ace/theme/github_light_default");
  editor.session.setUseWorker(false);
  editor.setOptions({
    mode: "ace/mode/yaml",
    theme: theme(),
    fontSize: 14,
    tabSize: 2,
    useSoftTabs: true,
    showPrintMargin: false,
    minLines: 20,
    maxLines: 34,
    wrap: false,
    enableBasicAutocompletion: true,
    enableLiveAutocompletion: true,
    enableKeyboardAccessibility: true,
  });
  editor.setValue(source.value, -1);
  editor.textInput.getElement().setAttribute("aria-label", "The policy's YAML");
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => editor.setTheme(theme()));
  window.tollgate.editor = editor;
  const text = () => editor.getValue();

  // ---- what is written here and nowhere else ------------------------------------------------------------------
  let kept = text();
  const isUnsaved = () => text() !== kept;
  const saved = (written) => { kept = written; };
  window.addEventListener("beforeunload", (event) => {
    if (isUnsaved()) event.preventDefault(); // the browser asks whether to leave
  });
  editor.session.on("change", () => { byId("unsaved").hidden = !isUnsaved(); });

  let schema = null;
  fetch("/console/policies/schema").then((answer) => (answer.ok ? answer.json() : null)).then((found) => { schema = found; });
  editor.completers = [
    {
      identifierRegexps: [/[A-Za-z0-9_.-]/],
      getCompletions(_editor, session, position, _prefix, done) {
        if (!schema) return done(null, []);
        done(null, window.policyCompletion.complete(schema, data.hints, session.getDocument().getAllLines(), position.row, position.column));
      },
    },
  ];

  // ---- findings at their lines --------------------------------------------------------------------------------
  const KINDS = { error: "error", warning: "warning", overlap: "info" };
  let lastCheck = 0;
  let timer = 0;

  function show(found) {
    editor.session.setAnnotations(
      found.findings.map((one) => ({ row: one.line - 1, column: 0, type: KINDS[one.severity], text: sentence(one) })),
    );
    const told = found.findings.filter((one) => one.severity !== "overlap");
    const errors = told.filter((one) => one.severity === "error").length;
    const verdict = byId("verdict");
    verdict.className = errors ? "bad" : "good";
    const warnings = told.length - errors;
    const also = warnings ? `, ${warnings} warning${warnings === 1 ? "" : "s"}` : "";
    verdict.textContent = errors ? `${errors} error${errors === 1 ? "" : "s"}${also}` : `Valid: ${found.version}${also}`;
    byId("findings").replaceChildren(
      ...told.map((one) => {
        const button = make("button", { type: "button", class: "quiet" }, `Line ${one.line}`);
        button.addEventListener("click", () => {
          editor.gotoLine(one.line, 0, true);
          editor.focus();
        });
        return make("li", { class: one.severity }, button, ` ${one.severity}: ${sentence(one)}`);
      }),
    );
  }
  const sentence = (one) => `${one.path ? `${one.path}: ` : ""}${one.message}${one.suggestion ? `; ${one.suggestion}` : ""}`;

  async function check() {
    const number = ++lastCheck;
    try {
      const found = await call("POST", `${API}/check`, { text: text() });
      if (number === lastCheck) show(found);
      return found;
    } catch (error) {
      if (number === lastCheck) {
        byId("verdict").className = "bad";
        byId("verdict").textContent = `It could not be checked: ${error.message}`;
        if (error.answer?.error?.code === "overloaded") timer = setTimeout(check, AGAIN_AFTER_MS);
      }
      return null;
    }
  }
  editor.session.on("change", () => {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_AFTER_MS);
  });
  check();

  // ---- the steps ----------------------------------------------------------------------------------------------
  document.querySelectorAll("[data-step]").forEach((button) => {
    button.addEventListener("click", () => {
      const name = button.dataset.step;
      document.querySelectorAll("[data-step]").forEach((other) => {
        const isThis = other === button && byId(`step-${name}`).hidden;
        byId(`step-${other.dataset.step}`).hidden = !isThis;
        other.setAttribute("aria-expanded", String(isThis));
      });
      if (!byId(`step-${name}`).hidden) {
        if (name === "diff") compare();
        byId(`step-${name}`).querySelector("input, select, textarea")?.focus();
        byId(`step-${name}`).scrollIntoView({ block: "nearest" });
      }
    });
  });

  function onSubmit(id, work) {
    byId(id)?.addEventListener("submit", async (event) => {
      event.preventDefault();
      const form = event.target;
      const buttons = form.querySelectorAll("button");
      buttons.forEach((button) => { button.disabled = true; });
      form.setAttribute("aria-busy", "true");
      tell(form, "");
      try {
        await work(form);
      } catch (error) {
        tell(form, error.message);
      } finally {
        buttons.forEach((button) => { button.disabled = false; });
        form.removeAttribute("aria-busy");
      }
    });
  }

  // ---- try a request ------------------------------------------------------------------------------------------
  onSubmit("try-form", async (form) => {
    const fields = Object.fromEntries(new FormData(form));
    const given = { latency_class: fields.latency_class, model: fields.model };
    if (fields.tenant.trim()) given.tenant = fields.tenant.trim();
    if (fields.task.trim()) given.task = fields.task.trim();
    if (fields.down.trim()) given.down = fields.down.split(/[\s,]+/).filter(Boolean);
    const body = { model: fields.model, messages: [{ role: "user", content: fields.content }] };
    byId("try-result").replaceChildren(explained(await call("POST", `${API}/explain`, { body, given, policy: text() })));
  });

  const facts = (found) =>
    Object.entries(found.facts)
      .filter(([, value]) => value !== null && value !== false && !(typeof value === "object" && !Object.keys(value).length))
      .map(([name, value]) => `${name.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`)
      .join(" · ");

  function explained(found) {
    const first = found.candidates[0];
    const result = make("div");
    if (found.error) {
      result.append(make("p", { class: "alert" }, `It would be refused with ${found.error.status} ${found.error.code}: ${found.error.message}`));
    } else {
      result.append(make("p", { class: "choice" }, "It would go to ", make("strong", {}, first.target), first.is_external ? " outside the company" : "", `: ${found.reason}.`));
    }
    result.append(make("p", { class: "note" }, facts(found)));
    if (found.rules.length) {
      result.append(make("h3", {}, "Rules"), table(["Rule", "What became of it"], found.rules.map((rule) => [rule.name, rule.is_matched ? "it matches and decides" : rule.why_not.join("; ")]), "Rules that were tried"));
    } else {
      result.append(make("p", { class: "note" }, "The policy has no rules: its routes decide."));
    }
    if (found.candidates.length || found.drops.length) {
      const ms = (value) => `${new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(value)} ms`;
      const rows = found.candidates.map((one, index) => [
        one.target,
        index ? `choice ${index + 1}` : "first choice",
        one.predicted ? ms(one.predicted.first_token_ms) : "–",
        one.predicted ? ms(one.predicted.total_ms) : "–",
        one.predicted ? one.predicted.cost_usd : "–",
        one.charge_usd_at_most ?? "unpriced",
      ]);
      rows.push(...found.drops.map((one) => [one.target, `dropped: ${one.reason}`, "–", "–", "–", "–"]));
      result.append(make("h3", {}, "Candidates"), table(["Target", "Choice", "First token", "Whole time", "Cost of supply, USD", "Charge at most, USD"], rows, "Candidates"));
    }
    const cache = found.cache.is_used ? `An earlier answer would do, for ${found.cache.ttl_s} s.` : `The answer cache is not used: ${found.cache.why_not}.`;
    result.append(make("p", { class: "note" }, cache));
    return result;
  }

  // ---- what it changes ----------------------------------------------------------------------------------------
  const MARKS = { "+": ["added", "+"], "-": ["removed", "\u2212"], "@": ["hunk", ""] };
  async function compare() {
    const result = byId("diff-result");
    result.replaceChildren(make("p", { class: "note" }, "Comparing…"));
    try {
      const found = await call("POST", `${API}/diff`, { text: text() });
      result.replaceChildren(difference(found));
    } catch (error) {
      result.replaceChildren(make("p", { class: "alert", role: "alert" }, error.message));
    }
  }

  function difference(found) {
    if (!found.text) return make("p", { class: "empty" }, make("strong", {}, "Nothing."), ` The draft is ${found.before}, which is in force.`);
    const shown = (value) => (value === null || value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
    const meaning = found.differences.length
      ? table(["Key", "What happened", "In force", "Draft"], found.differences.map((one) => [make("code", {}, one.path), one.kind, make("code", {}, shown(one.before)), make("code", {}, shown(one.after))]), "By meaning")
      : make("p", { class: "note" }, "It says the same; only the layout differs.");
    const lines = found.text.split("\n").slice(2).map((line) => {
      const [kind, mark] = MARKS[line[0]] ?? ["same", ""];
      return make("tr", { class: kind }, make("td", {}, mark, mark ? make("span", { class: "away" }, ` ${kind}`) : null), make("td", {}, make("code", {}, kind === "hunk" ? line : line.slice(1))));
    });
    const diff = make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Line by line" }, make("table", { class: "diff" }, make("tbody", {}, ...lines)));
    return make("div", {}, make("h3", {}, `Against ${found.before}, which is in force`), meaning, diff);
  }

  // ---- draft, publish -----------------------------------------------------------------------------------------
  onSubmit("draft-form", async (form) => {
    const written = text();
    const stored = await call("POST", API, { text: written, message: new FormData(form).get("message").trim() || null });
    saved(written);
    notice(stored.complaint ? `Stored as ${stored.version}; it does not fit yet: ${stored.complaint}` : `Stored as ${stored.version}.`);
    location.assign(`/console/policies/version/${encodeURIComponent(stored.version)}`);
  });

  onSubmit("publish-form", async (form) => {
    const found = await check();
    if (found && !found.is_valid) throw new Error("The draft has errors: see their lines above. Nothing was published.");
    if (!(await ask(`Let all requests follow ${found?.version ?? "this policy"}?`))) return;
    const message = new FormData(form).get("message").trim() || null;
    try {
      const written = text();
      const outcome = await call("POST", `${API}/publish`, { text: written, message, expected });
      saved(written);
      notice(outcome.is_changed ? `${outcome.active.version} is in force.` : `${outcome.active.version} was in force already.`);
      location.assign("/console/policies");
    } catch (error) {
      if (error.answer?.error?.code === "conflict") conflict(form);
      throw error;
    }
  });

  // Somebody else published meanwhile: only whoever has seen what is in force now may take its place.
  function conflict(form) {
    if (form.querySelector("[data-again]")) return;
    const again = make("button", { type: "button", "data-again": "" }, "See what differs from what is in force now");
    again.addEventListener("click", async () => {
      const active = await call("GET", `${API}/active`);
      expected = active.version;
      byId("step-diff").hidden = false;
      await compare();
      byId("step-diff").scrollIntoView({ block: "nearest" });
      again.remove();
      tell(form, `Publishing again takes the place of ${expected}.`);
    });
    form.append(again);
  }

  window.tollgate.policy = { text, make, table, onSubmit, call };
  document.dispatchEvent(new CustomEvent("policy-editor-ready"));
})();
