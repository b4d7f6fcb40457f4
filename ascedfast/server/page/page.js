// SPDX-License-Identifier: MIT
// Draws a request without and with correction, side by side, and shows the steps as they are taken.
"use strict";

const by = (id) => document.getElementById(id);
const JSON_BODY = { "Content-Type": "application/json", Accept: "text/event-stream" };
let running = null;

by("mode").addEventListener("change", () => { by("rate-label").hidden = by("mode").value !== "calibrated"; });
by("stop").addEventListener("click", () => running?.abort());
by("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  begin();
  try {
    await draw(running.signal);
  } catch (error) {
    running.abort(); // the other of the two requests
    if (error.name === "AbortError") by("status").textContent = "stopped";
    else fail(error);
  } finally {
    running = null;
    by("draw").disabled = false;
    by("stop").disabled = true;
  }
});
names();

// The model's name, where no token is asked for.
async function names() {
  const answer = await fetch("/v1/models").catch(() => null);
  if (answer?.ok) by("model").textContent = `Served here: ${(await answer.json()).data[0].id}.`;
}

function begin() {
  by("draw").disabled = true;
  by("stop").disabled = false;
  by("error").hidden = true;
  by("rows").replaceChildren();
  by("progress").value = 0;
  by("status").textContent = "waiting";
}

function fail(error) {
  by("status").textContent = "";
  by("error").textContent = error instanceof TypeError ? "The server does not answer: is it running?" : error.message;
  by("error").hidden = false;
}

async function draw(signal) {
  // Both requests need the same seed, so one is drawn here where none was given.
  const seed = by("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(by("seed").value);
  const plain = { seed, n: Number(by("n").value), steps: Number(by("steps").value), stream: true };
  const asced = { mode: by("mode").value, report: "masks" };
  if (asced.mode === "calibrated") asced.rate = Number(by("rate").value);
  const taken = [0, 0];
  const told = (which) => (progress) => {
    taken[which] = progress.step;
    by("progress").max = 2 * progress.steps;
    by("progress").value = taken[0] + taken[1];
    by("status").textContent = `step ${Math.min(...taken)} of ${progress.steps}`;
  };
  const began = performance.now();
  const [before, after] = await Promise.all([
    stream({ ...plain, asced: { enabled: false } }, told(0), signal),
    stream({ ...plain, asced }, told(1), signal),
  ]);
  by("progress").value = by("progress").max;
  by("status").textContent = `done in ${((performance.now() - began) / 1000).toFixed(1)} s, seed ${seed}`;
  before.data.forEach((image, i) => show(image, after.data[i]));
}

// POST the request; its answer once it is completed. Raises: Error with the server's words.
async function stream(body, onProgress, signal) {
  const headers = { ...JSON_BODY };
  if (by("token").value) headers.Authorization = `Bearer ${by("token").value}`;
  const response = await fetch("/v1/images/generations", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The server ended the answer before it was complete: try again.");
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/s)));
      if (fields.event === "progress") onProgress(JSON.parse(fields.data));
      if (fields.event === "completed") return JSON.parse(fields.data);
      if (fields.event === "error") throw new Error(JSON.parse(fields.data).error.message);
    }
  }
}

function show(before, after) {
  const row = by("row").content.cloneNode(true);
  const found = after.asced;
  const name = `image ${after.draw + 1}`;
  row.querySelector("h2").textContent = `Image ${after.draw + 1}: ${found.status}`;
  row.querySelector(".found").textContent = found.severity === null
    ? found.reason ?? "No severity."
    : `Severity ${found.severity.toFixed(3)}, ${(100 * found.area).toFixed(1)} % of the area` +
      (found.p_value === null ? "" : `, p ${found.p_value.toPrecision(2)}`) + `; T_c after ${found.t_c} steps.`;
  const picture = (kind, png, alt) => {
    const image = row.querySelector(`.${kind}`);
    image.alt = alt;
    image.src = `data:image/png;base64,${png}`;
  };
  picture("before", before.b64_json, `${name} without correction`);
  picture("after", after.b64_json, `${name} with correction`);
  picture("under", after.b64_json, "");
  if (found.mask_grown === null) row.querySelector(".mask").remove();
  else picture("mask", found.mask_grown, `${name}, what was re-noised`);
  by("rows").append(row);
}
