"use strict";
// Draws what report/boards.py prepared. Every text goes in as textContent.
const games = JSON.parse(document.getElementById("games").textContent);
const $ = id => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

function drawCell(id, was, erasing, changed) {
  const [text, marks] = games.cells[id], differs = was !== undefined && was !== text;
  const cell = make("div", "cell", differs && erasing ? was : text);
  for (const mark of marks) {
    if (mark.startsWith("indent-")) cell.style.marginLeft = `${1.4 * Number(mark.slice(7))}em`;
    else cell.classList.add(mark);
  }
  if (differs) {
    cell.classList.add(erasing ? "gone" : "now");
    changed.push(cell);
  }
  return cell;
}

// A board, and the cells in which it differs from the one before; on an erasure they show what was erased.
function drawBoard(number, before, erasing) {
  const [rows, [high, wide]] = games.boards[number], changed = [];
  const old = before === undefined ? undefined : games.boards[before][0];
  const was = (y, x) => old && (games.cells[old[y]?.[x]]?.[0] ?? "");
  const grid = make("div", high ? "grid" : "lines");
  if (high) grid.style.gridTemplateColumns = `repeat(${rows[0].length}, 1fr)`;
  grid.classList.toggle("small", rows.length > 4);
  rows.forEach((row, y) => {
    const line = high ? grid : grid.appendChild(make("div", "line"));
    row.forEach((id, x) => {
      const cell = drawCell(id, was(y, x), erasing, changed);
      cell.classList.toggle("right", high && (x + 1) % wide === 0 && x + 1 < row.length);
      cell.classList.toggle("bottom", high && (y + 1) % high === 0 && y + 1 < rows.length);
      line.append(cell);
    });
  });
  return [grid, changed.length > 0];
}

function drawStrip(steps, at, go) {
  const strip = make("div", "strip");
  steps.forEach((step, i) => {
    const chip = make("span", "", step.text);
    chip.classList.toggle("later", i >= at);
    chip.classList.toggle("dead", step.erased_at !== null && step.erased_at < at);
    chip.classList.toggle("at", i === at - 1);
    if (step.who) {
      chip.classList.add("bt");
      chip.classList.toggle("rule", step.who !== "BACKTRACK");
      chip.title = step.who;
    }
    chip.onclick = () => go(i + 1);
    strip.append(chip);
  });
  return strip;
}

function stepper() {
  const variants = Object.keys(games.runs), arms = Object.keys(games.runs[variants[0]]);
  const state = { variant: variants[0], problem: games.problem, left: games.left, right: games.right, step: "0" };
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) if (key in state) state[key] = value;
  if (!variants.includes(state.variant)) state.variant = variants[0];
  if (!games.problems[state.problem]) state.problem = games.problem;
  for (const side of ["left", "right"]) if (!arms.includes(state[side])) state[side] = games[side];
  let timer = null;

  const run = side => games.runs[state.variant][state[side]]?.[state.problem];
  const last = () => Math.max(...["left", "right"].map(side => run(side)?.steps.length ?? 0));
  const fill = (select, names, key) => {
    names.forEach(([value, text]) => select.append(new Option(text, value)));
    select.value = state[key];
    select.onchange = () => { state[key] = select.value; if (key === "problem" || key === "variant") state.step = 0; draw(); };
  };
  fill($("variant"), variants.map(name => [name, name]), "variant");
  fill($("problem"), games.problems.map((problem, i) => [i, problem.name]), "problem");
  for (const side of ["left", "right"]) fill($(side + "-arm"), arms.map(name => [name, name]), side);

  function drawSide(side) {
    const box = $(side), shown = run(side);
    box.replaceChildren();
    if (!shown) return box.append(make("p", "says", "not evaluated"));
    const steps = shown.steps, at = Math.min(state.step, steps.length), start = games.problems[state.problem].board;
    const now = steps[at - 1], before = now && (steps[at - 2]?.board ?? start);
    const [grid, changed] = drawBoard(now ? now.board : start, before, Boolean(now?.who));
    const says = make("p", "says");
    if (at === steps.length) {
      says.append(make("b", shown.correct ? "ok" : "no", shown.correct ? "✓ solved" : "✗ not solved"),
        ` with ${shown.emitted} tokens, ${steps.filter(step => step.erased_at !== null).length} erased`);
    } else if (now?.who) {
      says.textContent = `${now.who} erases ${steps.find(step => step.erased_at === at - 1)?.text ?? "nothing"}`;
    } else {
      says.textContent = now ? `${changed ? "writes" : "says"} ${now.text}` : "the problem";
    }
    box.append(grid, says, drawStrip(steps, at, go));
  }

  function draw() {
    $("slider").max = last();
    $("slider").value = state.step;
    $("count").textContent = `${state.step} / ${last()}`;
    $("play").textContent = timer ? "❚❚" : "▶";
    drawSide("left");
    drawSide("right");
    try { history.replaceState(null, "", "#" + new URLSearchParams(state)); } catch { /* a sandboxed page has no history */ }
  }
  const stop = () => { clearInterval(timer); timer = null; };
  const go = step => { stop(); state.step = Math.max(0, Math.min(last(), step)); draw(); };
  const play = () => {
    if (timer) { stop(); return draw(); }
    if (state.step >= last()) state.step = 0;
    timer = setInterval(() => { state.step++; if (state.step >= last()) stop(); draw(); }, 450);
    draw();
  };
  $("first").onclick = () => go(0);
  $("back").onclick = () => go(state.step - 1);
  $("play").onclick = play;
  $("next").onclick = () => go(state.step + 1);
  $("end").onclick = () => go(last());
  $("slider").oninput = event => go(Number(event.target.value));
  addEventListener("keydown", event => {
    const place = $("stepper").getBoundingClientRect(), seen = place.top < innerHeight && place.bottom > 0;
    if (!seen || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input, button, summary")) return;
    const action = { ArrowLeft: () => go(state.step - 1), ArrowRight: () => go(state.step + 1), " ": play }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  go(Number(state.step) || 0);
}
if (games) stepper();
