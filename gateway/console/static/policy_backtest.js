// The editor's backtest: asks for one, shows how far it is, then what the draft would have come to. A backtest runs
// in a process of its own on the server; whoever leaves the page finds it among the earlier ones.
"use strict";

document.addEventListener("policy-editor-ready", () => {
  const { tell, drawAll, policy } = window.tollgate;
  const { make, table, onSubmit, call } = policy;
  const API = "/admin/v1/policies/backtest";
  const byId = (id) => document.getElementById(id);
  const LOOK_AGAIN_MS = 1000;
  const form = byId("backtest-form");
  if (!form) return;
  const place = byId("backtest-result");
  const WORDS = { ttft_p50_s: "First token, P50", ttft_p95_s: "First token, P95", total_p50_s: "Whole time, P50", total_p95_s: "Whole time, P95", charge_usd: "Charge to tenants", cost_usd: "Cost of engine time" };
  let watched = null;

  const instant = (text) => (text ? `${text.length === 16 ? `${text}:00` : text}Z` : null);

  onSubmit("backtest-form", async () => {
    const fields = Object.fromEntries(new FormData(form));
    watched = (await call("POST", API, { text: policy.text(), from: instant(fields.from), to: instant(fields.to) })).id;
    await watch(watched);
  });

  const pause = () => new Promise((done) => setTimeout(done, LOOK_AGAIN_MS));

  async function watch(id) {
    for (;;) {
      const found = await call("GET", `${API}/${id}`);
      if (id !== watched) return;
      if (found.state !== "running") {
        place.replaceChildren(...ended(found));
        drawAll(place);
        return;
      }
      progress(found);
      await pause();
    }
  }

  function progress(found) {
    let bar = place.querySelector("progress");
    if (!bar) {
      const stop = make("button", { type: "button", class: "quiet" }, "Cancel");
      stop.addEventListener("click", () => call("POST", `${API}/${found.id}/cancel`, {}).catch((error) => tell(form, error.message)));
      bar = make("progress", { max: "1", "aria-label": "How far the backtest is" });
      place.replaceChildren(make("p", { "data-stage": "" }, ""), bar, " ", stop);
    }
    bar.value = found.progress_ratio;
    place.querySelector("[data-stage]").textContent = `${found.stage}, ${Math.round(found.progress_ratio * 100)} %: ${found.candidate} against ${found.baseline}`;
  }

  function ended(found) {
    if (found.state === "failed") return [make("p", { class: "alert", role: "alert" }, `The backtest failed: ${found.error}`)];
    if (found.state !== "done" || !found.result) return [make("p", { class: "note" }, `The backtest was ${found.state}.`)];
    return result(found.result);
  }

  // ---- what it found ------------------------------------------------------------------------------------------
  const usd = (text) => `${Number(text) > 0 ? "+" : ""}${new Intl.NumberFormat("en", { maximumSignificantDigits: 5 }).format(Number(text))} USD`;
  const ms = (value) => `${value > 0 ? "+" : ""}${new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format(value * 1000)} ms`;
  const isMoney = (measure) => measure.endsWith("_usd");
  const told = (measure, claim) => {
    if (!claim) return "–";
    if (claim.refused) return `not claimed: ${claim.refused}`;
    const write = isMoney(measure) ? usd : ms;
    return `${write(claim.estimate)} (${write(claim.low)} to ${write(claim.high)})`;
  };
  function verdict(claim) {
    if (!claim || claim.refused) return "not claimed";
    if (Number(claim.low) > 0) return "worse";
    return Number(claim.high) < 0 ? "better" : "no clear change";
  }

  function result(view) {
    const whole = view.groups.find((one) => one.by === "all");
    const parts = [make("p", { class: "choice" }, headline(view, whole))];
    if (whole) {
      const measures = Object.keys(WORDS).filter((name) => whole.change[name]);
      parts.push(table(["Over all requests", "Change", "In a word"], measures.map((name) => [WORDS[name], told(name, whole.change[name]), verdict(whole.change[name])]), "Change over all requests"));
    }
    const charts = make("div", { class: "columns" });
    charts.append(...[
      intervals(view, "tenant", "charge_usd", "Who pays more or less, USD: 95 % intervals"),
      intervals(view, "task", "cost_usd", "Cost of engine time by task, change in USD"),
      intervals(view, "class", "total_p95_s", "Whole time P95 by latency class, change in ms"),
      loads(view),
    ].filter(Boolean));
    parts.push(charts);
    for (const [by, title] of [["tenant", "Tenants"], ["task", "Tasks"], ["class", "Latency classes"]]) {
      const groups = view.groups.filter((one) => one.by === by);
      if (!groups.length) continue;
      const rows = groups.map((one) => [one.name || "–", String(one.requests), told("charge_usd", one.change.charge_usd), verdict(one.change.charge_usd), told("total_p95_s", one.change.total_p95_s), verdict(one.change.total_p95_s)]);
      parts.push(make("h3", {}, `Who wins, who loses: ${title}`), table([title, "Requests", "Charge", "In a word", "Whole time, P95", "In a word"], rows, title));
    }
    parts.push(listed("Not claimed", view.not_claimed), listed("What it takes for granted", view.assumed));
    return parts.filter(Boolean);
  }

  function headline(view, whole) {
    const record = `${new Intl.NumberFormat("en").format(view.requests)} recorded requests`;
    if (!whole) return `${record}: nothing to compare.`;
    const says = (what, claim) => (claim.refused ? `${what} cannot be claimed` : `${what} would be ${{ better: "less", worse: "more" }[verdict(claim)] ?? "about the same"}`);
    return `${record}. ${says("What tenants are charged", whole.change.charge_usd)}; ${says("what engine time costs", whole.change.cost_usd)}.`;
  }

  const listed = (title, sentences) => (sentences.length ? make("details", {}, make("summary", {}, `${title} (${sentences.length})`), make("ul", {}, ...sentences.map((one) => make("li", {}, one)))) : null);

  // A bar from the lower to the upper end of each interval, by what it comes to; the table below says the same.
  const TONES = [["better", "good"], ["no clear change", "off"], ["worse", "bad"]];
  const GROUPS_MAX = 15;
  function intervals(view, by, measure, title) {
    const groups = view.groups.filter((one) => one.by === by && one.change[measure] && !one.change[measure].refused).slice(0, GROUPS_MAX);
    if (!groups.length) return null;
    const factor = isMoney(measure) ? 1 : 1000;
    const bar = (claim) => [Number(claim.low) * factor, Number(claim.high) * factor];
    const series = TONES.map(([word, tone]) => ({ label: word, kind: "bar", tone, overlaid: true, values: groups.map((one) => (verdict(one.change[measure]) === word ? bar(one.change[measure]) : null)) }));
    return figure(`${by}-${measure}`, title, { labels: groups.map((one) => one.name || "–"), unit: isMoney(measure) ? "usd" : "ms", across: "", horizontal: true, series });
  }

  function loads(view) {
    const pools = view.pools.filter((one) => one.baseline || one.candidate);
    if (!pools.length) return null;
    const side = (name, tone) => ({ label: name, kind: "bar", tone, values: pools.map((one) => one[name]?.busy_ratio ?? null) });
    return figure("pool-loads", "How busy the pools would be", { labels: pools.map((one) => one.pool), unit: "ratio", across: "Pool", series: [side("baseline", "off"), side("candidate", "accent")] });
  }

  function figure(id, title, spec) {
    const data = make("script", { type: "application/json", id: `backtest-${id}` });
    data.textContent = JSON.stringify({ stacked: false, horizontal: false, logarithmic: false, links: null, ...spec });
    const canvas = make("canvas", { role: "img", "aria-label": `${title}; the tables below have the figures.`, "data-chart": `backtest-${id}` });
    return make("figure", { class: "chart" }, make("figcaption", {}, title), make("div", { class: "canvas" }, canvas), data);
  }

  // ---- earlier ones -------------------------------------------------------------------------------------------
  async function earlier() {
    const found = await call("GET", `${API}?limit=5`);
    if (!found.data.length) return;
    const buttons = found.data.map((one) => {
      const button = make("button", { type: "button", class: "quiet" }, `${one.at.slice(0, 16).replace("T", " ")} ${one.candidate} (${one.state})`);
      button.addEventListener("click", () => {
        watched = one.id;
        watch(one.id).catch((error) => tell(form, error.message));
      });
      return make("li", {}, button);
    });
    form.after(make("details", {}, make("summary", {}, "Earlier backtests"), make("ul", { class: "plain" }, ...buttons)));
  }
  earlier().catch((error) => tell(form, error.message));
});
