"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const state = { cards: [], history: [], turn: 0 };

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  if ($("token").value) headers.authorization = `Bearer ${$("token").value}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const answer = await fetch(`v1/${path}`, options);
  const found = await answer.json();
  if (answer.status === 401) $("token-field").hidden = false;
  if (!answer.ok) throw new Error(found.detail);
  return found;
}

async function guarded(work) {
  try {
    await work();
    $("fault").hidden = true;
  } catch (error) {
    $("fault").textContent = error.message;
    $("fault").hidden = false;
  }
}

const card = () => state.cards.find((one) => one.name === $("model").value);
const named = (entry) => entry.title ?? String(entry.item);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function loadModels() {
  const kept = $("model").value;
  state.cards = (await ask("models")).models;
  $("model").replaceChildren(...state.cards.map((one) => new Option(one.name, one.name)));
  if (state.cards.some((one) => one.name === kept)) $("model").value = kept;
  await showModel();
}

async function showModel() {
  const one = card();
  $("card").textContent = `${one.model.name}, ${one.item_count} items, version ${one.version}`;
  const predicts = (name) => one.outputs.includes(name);
  $("map-section").hidden = !(predicts("probability") && predicts("rating"));
  $("diversity-field").hidden = !predicts("embedding");
  await search();
  showHistory();
  await recommend();
}

async function search() {
  const query = encodeURIComponent($("query").value);
  const { items } = await ask(`models/${$("model").value}/items?limit=8&query=${query}`);
  if (!items.length) {
    $("found").replaceChildren(element("li", "Nothing found", "answer"));
    return;
  }
  $("found").replaceChildren(...items.map((entry) => {
    const button = element("button");
    button.append(element("span", named(entry)), element("small", `${entry.interactions}`));
    button.addEventListener("click", () => pick(entry));
    const line = element("li");
    line.append(button);
    return line;
  }));
}

function pick(entry) {
  const { levels, reads_repeats: again } = card();
  if (!again) state.history = state.history.filter((one) => one.item !== entry.item);
  state.history.push({ ...entry, rating: levels[levels.length - 1] });
  showHistory();
  guarded(recommend);
}

async function loadUser() {
  const { levels } = card();
  const user = encodeURIComponent($("user").value.trim());
  const { items } = await ask(`models/${$("model").value}/users/${user}/history`);
  state.history = items.map((entry) => ({ ...entry, rating: entry.rating ?? levels[levels.length - 1] }));
  showHistory();
  await recommend();
}

function showHistory() {
  const { levels, reads_ratings: rated } = card();
  $("empty").hidden = state.history.length > 0;
  $("history").replaceChildren(...state.history.map((entry) => {
    const row = element("div", undefined, "row");
    row.append(element("span", named(entry)));
    if (rated) {
      const choice = element("select");
      choice.append(...levels.map((level) => new Option(`${level}`, level)));
      choice.value = entry.rating;
      choice.setAttribute("aria-label", `Rating of ${named(entry)}`);
      choice.addEventListener("change", () => { entry.rating = Number(choice.value); guarded(recommend); });
      row.append(choice);
    }
    const away = element("button", "\u00d7");
    away.setAttribute("aria-label", `Take ${named(entry)} out`);
    away.addEventListener("click", () => {
      state.history = state.history.filter((one) => one !== entry);
      showHistory();
      guarded(recommend);
    });
    row.append(away);
    const line = element("li");
    line.append(row);
    return line;
  }));
}

async function recommend() {
  const turn = ++state.turn;
  const history = { items: state.history.map((one) => one.item) };
  if (card().reads_ratings) history.ratings = state.history.map((one) => one.rating);
  const options = { k: Math.min(50, Math.max(1, Number($("k").value) || 10)), popularity_damping: Number($("damping").value) };
  if (Number($("diversity").value)) options.diversity = Number($("diversity").value);
  const path = `models/${$("model").value}`;
  const answer = await ask(`${path}/explanations`, { history, options, max_reasons: 3 });
  const view = $("map-section").hidden ? null : await ask(`${path}/map`, { history });
  if (turn !== state.turn) return;
  $("list").replaceChildren(...answer.items.map(listed));
  if (view) drawMap(view, answer.items.map((entry) => entry.recommended));
  document.body.dataset.turn = turn;
}

function listed({ recommended, reasons }) {
  const line = element("li");
  line.append(element("div", named(recommended), "name"));
  const parts = [];
  if (recommended.probability !== undefined) parts.push(`met with ${(100 * recommended.probability).toFixed(1)} %`);
  if (recommended.rating !== undefined) parts.push(`rated ${recommended.rating.toFixed(2)}`);
  if (recommended.deviation !== undefined) parts.push(`\u00b1 ${recommended.deviation.toFixed(2)}`);
  if (!parts.length) parts.push(`score ${recommended.score.toFixed(3)}`);
  line.append(element("div", parts.join(", "), "answer"));
  if (reasons.length) {
    const why = element("div", "moved by ", "reasons");
    reasons.forEach((reason, place) => {
      const sign = reason.influence >= 0 ? "up" : "down";
      why.append(place ? ", " : "", element("b", named(reason)), " ",
        element("span", `${reason.influence >= 0 ? "+" : "\u2212"}${Math.abs(reason.influence).toFixed(2)}`, sign));
    });
    line.append(why);
  }
  return line;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high) {
  const found = [];
  for (const factors of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    found.length = 0;
    for (let power = Math.floor(low); power <= high; power++) {
      found.push(...factors.map((factor) => factor * 10 ** power));
    }
    const inside = found.filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
    if (inside.length >= 3) return inside;
  }
  return [0, 1, 2, 3].map((step) => 10 ** (low + (high - low) * step / 3));
}

function drawMap(view, list) {
  const box = { left: 52, right: 622, top: 14, bottom: 396 };
  const probabilities = view.items.map((one) => one.probability).concat(list.map((one) => one.probability));
  const ratings = view.items.map((one) => one.rating).concat(list.map((one) => one.rating));
  const low = Math.log10(Math.max(1e-6, Math.min(...probabilities)));
  const high = Math.max(low + 0.1, Math.log10(Math.max(...probabilities)));
  const least = Math.min(...ratings), most = Math.max(least + 0.1, ...ratings);
  const x = (value) => box.left + (box.right - box.left) * (Math.log10(Math.max(1e-6, value)) - low) / (high - low);
  const y = (value) => box.bottom - (box.bottom - box.top) * (value - least) / (most - least);
  const parts = [];
  for (const value of ticks(low, high)) {
    const label = `${+(100 * value).toPrecision(value < 0.1 ? 1 : 2)} %`;
    parts.push(drawn("line", { class: "grid", x1: x(value), x2: x(value), y1: box.top, y2: box.bottom }));
    parts.push(drawn("text", { x: x(value), y: box.bottom + 16, "text-anchor": "middle" }, label));
  }
  for (let step = 0; step <= 4; step++) {
    const value = least + (most - least) * step / 4;
    parts.push(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    parts.push(drawn("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
  }
  parts.push(drawn("text", { x: (box.left + box.right) / 2, y: 432, "text-anchor": "middle" }, "probability of an interaction"));
  parts.push(drawn("text", { transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "expected rating"));
  const point = (one, className, radius) => {
    const made = drawn("circle", { class: className, cx: x(one.probability), cy: y(one.rating), r: radius });
    made.append(drawn("title", {}, `${named(one)}: ${(100 * one.probability).toFixed(2)} %, ${one.rating.toFixed(2)}`));
    return made;
  };
  parts.push(...view.items.filter((one) => !one.seen).map((one) => point(one, "all", 2.5)));
  parts.push(...view.items.filter((one) => one.seen).map((one) => point(one, "seen", 5)));
  parts.push(...list.map((one) => point(one, "listed", 5)));
  const taken = [];
  for (const one of list) {
    const [px, py] = [x(one.probability), y(one.rating)];
    if (taken.some(([qx, qy]) => Math.abs(px - qx) < 90 && Math.abs(py - qy) < 14)) continue;
    taken.push([px, py]);
    const isRight = px > (box.left + box.right) / 2;
    const place = { class: "name", x: px + (isRight ? -8 : 8), y: py + 4, "text-anchor": isRight ? "end" : "start" };
    const name = named(one);
    parts.push(drawn("text", place, name.length > 28 ? `${name.slice(0, 27)}\u2026` : name));
  }
  $("map").replaceChildren(...parts);
}

let pause;
$("query").addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(() => guarded(search), 150);
});
$("model").addEventListener("change", () => { state.history = []; guarded(showModel); });
$("token").addEventListener("change", () => guarded(loadModels));
$("known").addEventListener("submit", (event) => {
  event.preventDefault();
  if ($("user").value.trim()) guarded(loadUser);
});
for (const id of ["k", "diversity", "damping"]) $(id).addEventListener("change", () => guarded(recommend));
guarded(loadModels);
