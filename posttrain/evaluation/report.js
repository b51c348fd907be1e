"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes, parent) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (parent) parent.append(node);
  return node;
}

function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}
const percent = (value) => `${Number((100 * value).toFixed(1))} %`;

// ---- charts -------------------------------------------------------------------------------------------------------

const WIDTH = 380, HEIGHT = 190, LEFT = 46, RIGHT = 10, TOP = 18, BOTTOM = 24;
const charts = [];

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + 1e-9 * size; i++) found.push(i * size || 0);
  return found;
}

// Mean over a window centred on each point (no lag), cut off at the ends.
function smooth(values) {
  const sums = [0], half = Math.max(2, Math.round(values.length / 40));
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const [from, to] = [Math.max(0, i - half), Math.min(values.length, i + half + 1)];
    return (sums[to] - sums[from]) / (to - from);
  });
}

// Whether a curve is long and goes up and down so often that its mean should be drawn over it.
function isNoisy(values) {
  let turns = 0;
  for (let i = 2; i < values.length; i++) turns += (values[i] - values[i - 1]) * (values[i - 1] - values[i - 2]) < 0;
  return values.length >= 60 && turns > 0.1 * values.length;
}

function domain(values, fixed) {
  if (fixed) return fixed;
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  const pad = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low - pad < 0 ? 0 : low - pad, high + pad];
}

// spec: title, unit, series [{name, steps, values, low?, high?}], range? [low, high], format?
function chart(parent, spec) {
  const format = spec.format || figure;
  const output = make("output"), keys = make("div", { className: "keys" });
  const box = make("div", { className: "chart" },
    make("div", { className: "head" }, make("h3", { textContent: spec.title }), output), keys);
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": spec.title }, null);
  box.append(svg);
  parent.append(box);

  const steps = spec.series.flatMap((series) => series.steps);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const [low, high] = domain(spec.series.flatMap((s) => [...s.values, ...(s.low || []), ...(s.high || [])]), spec.range);
  const margin = spec.points && last > first ? 0.04 * (last - first) : 0;
  const [from, to] = last > first ? [first - margin, last + margin] : [first - 1, last + 1];
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * (step - from) / (to - from);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);

  for (const tick of ticks(low, high, 4)) {
    draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }, svg);
    draw("text", { x: LEFT - 5, y: y(tick) + 3.5, "text-anchor": "end" }, svg).textContent = format(tick);
  }
  const axis = spec.axis || "step";
  const whole = (tick) => spec.axis || Number.isInteger(tick);
  const marks = ticks(from, to, 4).filter((tick) => whole(tick) && tick >= first && tick <= last && x(tick) > LEFT + 4);
  for (const tick of marks) {
    draw("text", { x: x(tick), y: HEIGHT - 8, "text-anchor": "middle" }, svg).textContent = tick.toLocaleString("en");
  }
  draw("text", { x: LEFT - 40, y: 10 }, svg).textContent = spec.unit;
  draw("text", { x: LEFT - 5, y: HEIGHT - 8, "text-anchor": "end" }, svg).textContent = axis;

  const cross = draw("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM }, svg);
  const dots = spec.series.map((series, i) => {
    const colour = `var(--series-${i % 5})`;
    const line = (values, name) => draw("path", { class: name, style: `stroke: ${colour}`,
      d: values.map((value, j) => `${j ? "L" : "M"}${x(series.steps[j]).toFixed(1)} ${y(value).toFixed(1)}`).join("") }, svg);
    const noisy = !spec.points && isNoisy(series.values);
    line(series.values, noisy ? "raw" : "");
    if (noisy) line(smooth(series.values), "");
    if (spec.points || series.values.length === 1) series.values.forEach((value, j) => {
      draw("circle", { cx: x(series.steps[j]), cy: y(value), r: 3, style: `fill: ${colour}` }, svg);
      if (series.low) draw("path", { style: `stroke: ${colour}; stroke-width: 1.3`,
        d: `M${x(series.steps[j])} ${y(series.low[j])}V${y(series.high[j])}m-4 0h8M${x(series.steps[j]) - 4} ${y(series.low[j])}h8` }, svg);
    });
    return draw("circle", { r: 3.2, style: `fill: ${colour}; visibility: hidden` }, svg);
  });

  function show(step, hovered) {
    const nearest = spec.series.map((series) => {
      let best = 0;
      series.steps.forEach((s, j) => { if (Math.abs(s - step) < Math.abs(series.steps[best] - step)) best = j; });
      return best;
    });
    const at = spec.series[0].steps[nearest[0]];
    output.textContent = `${spec.series.length === 1 && !spec.points ? `${format(spec.series[0].values[nearest[0]])} · ` : ""}${axis} ${at.toLocaleString("en")}`;
    if (spec.series.length > 1 || spec.points) keys.replaceChildren(...spec.series.map((series, i) => {
      const j = nearest[i], key = make("span");
      const swatch = make("i");
      swatch.style.background = `var(--series-${i % 5})`;
      const interval = series.low ? ` [${format(series.low[j])}, ${format(series.high[j])}]` : "";
      key.append(swatch, `${series.name} ${format(series.values[j])}${interval}`);
      return key;
    }));
    cross.setAttribute("x1", x(at)); cross.setAttribute("x2", x(at));
    cross.style.visibility = hovered ? "visible" : "hidden";
    dots.forEach((dot, i) => {
      dot.setAttribute("cx", x(spec.series[i].steps[nearest[i]]));
      dot.setAttribute("cy", y(spec.series[i].values[nearest[i]]));
      dot.style.visibility = hovered ? "visible" : "hidden";
    });
  }
  show(last, false);
  const together = spec.axis ? [show] : charts;
  if (!spec.axis) charts.push(show);
  svg.addEventListener("pointermove", (event) => {
    const inside = (event.clientX - svg.getBoundingClientRect().left) * WIDTH / svg.clientWidth;
    const step = from + (to - from) * (inside - LEFT) / (WIDTH - LEFT - RIGHT);
    together.forEach((other) => other(step, true));
  });
  svg.addEventListener("pointerleave", () => together.forEach((other) => other(Infinity, false)));
}

// [title, unit, keys (or a pattern over "<term>/<figure>"), options]
const MAIN = [
  ["Pass rate", "share solved", ["pass_rate"], { range: [0, 1], format: percent }],
  ["Reward", "mean", ["reward_mean"]],
  ["Rewards", "mean", /^rewards\//],
  ["Negative log-likelihood", "nats per token", /\/nll$/],
  ["Entropy", "nats per token", /(^|\/)entropy$/],
  ["KL to the reference", "nats per completion", ["kl_to_reference"]],
  ["KL", "nats per token", /(^|\/)kl/],
  ["Clip fraction", "share of tokens", /clip_fraction$/],
  ["Effective sample size", "share", /(^|\/)ess$/],
  ["Gradient norm", "before clipping", ["grad_norm"]],
  ["Learning rate", "per step", ["learning_rate"]],
  ["Completion length", "tokens", ["completion_tokens_mean"]],
  ["Ungraded and truncated", "trajectories", ["num_ungraded", "num_truncated"]],
  ["Throughput", "tokens per second", ["tokens_per_second"]],
  ["Time of a step", "seconds", ["step_seconds", "rollout_seconds", "update_seconds"]],
];

function drawCurves() {
  const left = new Set(Object.keys(data.curves));
  for (const [title, unit, keys, options] of MAIN) {
    const names = [...left].filter((name) => keys instanceof RegExp ? keys.test(name) : keys.includes(name));
    if (!names.length) continue;
    names.forEach((name) => left.delete(name));
    chart(byId("main-charts"), { title, unit, ...options, series: names.map((name) => ({ name, ...data.curves[name] })) });
  }
  left.delete("time_seconds");
  if (!left.size) byId("more").remove();
  else byId("more").addEventListener("toggle", () => {
    if (byId("more-charts").childElementCount) return;
    for (const name of left) chart(byId("more-charts"), { title: name, unit: "", series: [{ name, ...data.curves[name] }] });
  });
  if (!Object.keys(data.curves).length) byId("main-charts").replaceWith(make("p", { className: "empty", textContent: "No metrics yet." }));
}

function drawGold() {
  for (const { name, kl, proxy, gold } of data.gold) {
    const order = kl.map((_, i) => i).sort((a, b) => kl[a] - kl[b]);
    const series = [["what is optimised", proxy], [name, gold]].map(([label, values]) => (
      { name: label, steps: order.map((i) => kl[i]), values: order.map((i) => values[i]) }));
    chart(byId("gold-charts"), { title: `${name} over KL to the reference`, unit: "mean", axis: "KL", series });
  }
}

function drawEvaluations() {
  const names = [...new Set(data.evaluations.map((row) => row.benchmark))];
  for (const name of names) {
    const rows = data.evaluations.filter((row) => row.benchmark === name).sort((a, b) => a.step - b.step);
    const bound = (i) => rows.map((row) => (row.interval && row.interval[i] !== null ? row.interval[i] : row.pass_rate));
    chart(byId("evaluation-charts"), { title: String(name), unit: "pass rate", points: true, range: [0, 1], format: percent,
      series: [{ name: "pass rate", steps: rows.map((row) => row.step), values: rows.map((row) => row.pass_rate), low: bound(0), high: bound(1) }] });
  }
}

// ---- rollouts -----------------------------------------------------------------------------------------------------

const MAX_LISTED = 500;
const filters = byId("filters"), list = byId("list"), article = byId("rollout"), tip = byId("tip");
let found = [], current = 0;
const scale = data.rollouts.reduce((most, one) => {
  for (const value of [].concat(one.advantage ?? [])) most = Math.max(most, Math.abs(value ?? 0));
  return most;
}, 0) || 1;

const textOf = (one) => one.tokens ? one.tokens.join("") : one.completion || "";
const resultOf = (one) => one.reward === null || one.reward === undefined ? "ungraded" : one.solved ? "solved" : "not solved";
const DROPPED = { alike: "not trained on: its group ended alike", stale: "not trained on: sampled by too old a policy",
  unused: "not trained on" };
const advantageOf = (one, i) => (Array.isArray(one.advantage) ? one.advantage[i] : one.advantage) ?? null;

// Characters that a browser would hide or obey become visible.
const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g,
  (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function options(select, values, label) {
  select.replaceChildren(make("option", { value: "", textContent: "all" }),
    ...values.map((value) => make("option", { value: String(value), textContent: label(value) })));
}

function applyFilters() {
  const wanted = Object.fromEntries(new FormData(filters));
  const [low, high] = [wanted.low, wanted.high].map((text) => (text === "" ? null : Number(text)));
  found = data.rollouts.filter((one) =>
    (!wanted.step || String(one.step) === wanted.step) && (!wanted.group || one.prompt_id === wanted.group)
    && (!wanted.result || (wanted.result === "not trained on" ? Boolean(one.dropped) : resultOf(one) === wanted.result))
    && (low === null || (one.reward !== null && one.reward >= low)) && (high === null || (one.reward !== null && one.reward <= high))
    && (!wanted.text || textOf(one).includes(wanted.text)));
  list.replaceChildren(...found.slice(0, MAX_LISTED).map(row));
  if (found.length > MAX_LISTED) list.append(make("li", { className: "more", textContent: `and ${found.length - MAX_LISTED} more: filter, or go on with →` }));
  open(0);
}

function mark(one) {
  const result = resultOf(one);
  const text = result === "ungraded" ? "ungraded" : `${figure(one.reward)} ${one.solved ? "✓" : "✗"}`;
  return make("span", { className: `mark ${result === "not solved" ? "failed" : result}`, textContent: text });
}

function row(one, i) {
  return make("li", { onclick: () => open(i), className: one.dropped ? "dropped" : "", title: one.dropped ? DROPPED[one.dropped] : "" },
    make("span", { className: "where", title: one.sample === undefined ? "step, group, attempt" : "step, group, sample",
      textContent: `s${one.step} g${one.rank ? `${one.rank}.` : ""}${one.group ?? "–"} #${one.sample ?? one.attempt ?? "–"}` }),
    make("span", { className: "start", textContent: visible(textOf(one).slice(0, 80)) || "(empty)" }), mark(one));
}

function open(i) {
  current = i;
  list.querySelectorAll("li.on").forEach((item) => item.classList.remove("on"));
  const one = found[i];
  if (!one) {
    article.replaceChildren(make("p", { className: "empty", textContent: "No rollout passes the filters." }));
    return;
  }
  const item = list.children[i];
  if (item && i < MAX_LISTED) {
    item.classList.add("on");
    if (item.offsetTop < list.scrollTop + list.offsetTop || item.offsetTop + item.offsetHeight > list.scrollTop + list.offsetTop + list.clientHeight)
      list.scrollTop = item.offsetTop - list.offsetTop - list.clientHeight / 2;
  }
  article.replaceChildren(bar(one, i), facts(one), ...data.prompts[one.prompt].map(bubble), ...turns(one), legend(one));
}

function bar(one, i) {
  const go = (by, label, key) => make("button", { type: "button", textContent: label, title: `key ${key}`, onclick: () => move(by) });
  return make("div", { className: "bar" }, mark(one), one.dropped ? make("span", { className: "left", textContent: DROPPED[one.dropped] }) : null,
    one.error ? make("span", { className: "error", textContent: visible(one.error) }) : null,
    make("span", { className: "push" }, `${i + 1} of ${found.length}`, go(-1, "← previous", "←"), go(1, "next →", "→")));
}

const seconds = (value) => (value ? `${figure(value)} s` : null);
const numTokens = (one) => one.turns && one.turns.length ? one.turns.reduce((sum, turn) => sum + turn.num_tokens, 0) : one.tokens ? one.tokens.length : null;

function facts(one) {
  const several = one.turns && one.turns.length > 1;
  const versions = one.turns ? [...new Set(one.turns.map((turn) => turn.policy_version))] : [one.policy_version];
  const values = { step: one.step, prompt: one.prompt_id, group: one.group, rank: one.rank || null, sample: one.sample,
    attempt: one.attempt, by: one.by === "reference" ? one.by : null, turns: several ? one.turns.length : null,
    "ended by": several || one.outcome !== null ? one.end : null, task: { true: "achieved", false: "not achieved" }[one.outcome],
    "stopped by": one.stop_reason, tokens: numTokens(one), "policy version": versions.length ? versions.join(", ") : null,
    "sampled in": seconds(one.generation_seconds), "environment took": seconds(one.environment_seconds), "graded in": seconds(one.grading_seconds) };
  for (const [name, value] of Object.entries(one.rewards || {})) values[`reward ${name}`] = value === null ? "failed" : figure(value);
  return make("dl", {}, ...Object.entries(values).filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => make("div", {}, make("dt", { textContent: visible(name) }), make("dd", { textContent: visible(String(value)) }))));
}

function bubble(message) {
  return make("div", { className: "bubble" }, make("small", { textContent: visible(message.role || "prompt") }),
    make("div", { className: "text", textContent: visible(message.content) }));
}

function shade(one, i) {
  if (filters.elements.shade.value === "surprise") {
    const logprob = one.logprobs[i];
    return logprob === null ? "" : `rgba(150, 90, 220, ${(0.7 * Math.min(1, -logprob / 5)).toFixed(3)})`;
  }
  const advantage = advantageOf(one, i);
  if (!advantage) return "";
  return `rgba(${advantage > 0 ? "38, 166, 91" : "224, 62, 62"}, ${(0.1 + 0.5 * Math.abs(advantage) / scale).toFixed(3)})`;
}

// What was sampled, a bubble a turn, with what the policy read before it.
function turns(one) {
  const whole = [{ start: 0, before: "" }];
  const each = one.tokens && one.turns && one.turns.length ? one.turns : whole;
  return each.flatMap((turn, k) => {
    const said = turn.before ? [make("div", { className: "bubble" },
      make("small", { textContent: k ? "environment" : "given, from a demonstration" }),
      make("div", { className: "text", textContent: visible(turn.before) }))] : [];
    const picture = turn.screenshot ? [make("img", { className: "screen", src: turn.screenshot, alt: "what the action was taken in" })] : [];
    return [...said, ...picture, sampled(one, turn, k + 1 < each.length ? each[k + 1].start : Infinity, each.length > 1 ? `turn ${k + 1}` : "")];
  });
}

function sampled(one, turn, end, name) {
  const text = make("div", { className: "text" });
  if (one.tokens) one.tokens.slice(turn.start, end).forEach((token, k) => {
    const span = make("span", { textContent: visible(token).replace(/\n/g, "↵\n") || "∅" });
    span.dataset.i = turn.start + k;
    span.style.background = shade(one, turn.start + k);
    text.append(span);
  });
  else text.append(visible(one.completion || "") || make("span", { className: "mute", textContent: "(nothing was sampled)" }));
  const earned = turn.reward === null || turn.reward === undefined ? null : `reward ${figure(turn.reward)}`;
  const what = name ? [`version ${turn.policy_version}`, `${turn.num_tokens} tokens`, turn.stop_reason, earned, turn.masked ? "not trained on" : null] : [];
  const label = [one.by === "reference" ? "reference" : "policy", name, ...what].filter(Boolean).join(" · ");
  const refused = turn.invalid ? make("small", { className: "error", textContent: visible(`could not be done: ${turn.invalid}`) }) : null;
  return make("div", { className: "bubble policy" }, make("small", { textContent: label }), text, refused);
}

function legend(one) {
  if (!one.tokens) return make("span");
  const ramp = make("i");
  if (filters.elements.shade.value === "surprise") {
    ramp.style.background = "linear-gradient(90deg, rgba(150, 90, 220, 0), rgba(150, 90, 220, .7))";
    return make("div", { className: "legend" }, "likely 0", ramp, "−5 nats or less");
  }
  ramp.style.background = "linear-gradient(90deg, rgba(224, 62, 62, .6), rgba(224, 62, 62, .1) 49%, transparent 49%, transparent 51%, rgba(38, 166, 91, .1) 51%, rgba(38, 166, 91, .6))";
  return make("div", { className: "legend" }, `advantage −${figure(scale)}`, ramp, `+${figure(scale)}`);
}

function move(by) {
  const next = current + by;
  if (next >= 0 && next < found.length) open(next);
}

article.addEventListener("pointerover", (event) => {
  const i = event.target.dataset && event.target.dataset.i;
  tip.hidden = i === undefined;
  if (tip.hidden) return;
  const one = found[current], logprob = one.logprobs[i];
  const chance = logprob === null ? "" : ` (${percent(Math.exp(logprob))})`;
  tip.textContent = `${visible(JSON.stringify(one.tokens[i]))}\nlogprob ${figure(logprob)}${chance}\nadvantage ${figure(advantageOf(one, i))}`;
  const spot = event.target.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(spot.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${spot.top > tip.offsetHeight + 8 ? spot.top - tip.offsetHeight - 4 : spot.bottom + 4}px`;
});
article.addEventListener("pointerleave", () => { tip.hidden = true; });

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 }[event.key];
  if (by === undefined || !found.length) return;
  event.preventDefault();
  move(by);
});

drawEvaluations();
drawCurves();
drawGold();
if (data.rollouts.length) {
  const groups = new Map(data.rollouts.map((one) => [one.prompt_id, one.prompt]));
  const start = (id) => data.prompts[groups.get(id)].map((message) => message.content).join(" ").slice(0, 40);
  options(filters.elements.step, [...new Set(data.rollouts.map((one) => one.step))], String);
  options(filters.elements.group, [...groups.keys()], (id) => visible(`${id}: ${start(id)}`));
  filters.addEventListener("input", (event) => (event.target.name === "shade" ? open(current) : applyFilters()));
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
} else byId("reader").replaceWith(make("p", { className: "empty", textContent: "No rollouts were kept." }));
