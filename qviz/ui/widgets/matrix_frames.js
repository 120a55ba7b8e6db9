// What there is to show and to say of each frame of a matrix that was sent ahead. The other kind,
// steps of a run, is in replay.js and answers the same questions.

const NAN = 255; // index of "not a number"

function sentFrames(model) {
  const get = (name) => model.get(name);
  return {
    count: () => get("ranges").length,
    prepare: () => true,
    label: (f) => get("labels")[f] ?? "",
    range: (f) => get("ranges")[f], // what the indices 0 and 254 stand for
    limits: (f) => (get("autoscale") ? get("own_limits") : get("shared_limits"))[f],
    extent: (f) => get("clipped")[f],
    nans: (f) => get("nans")[f],
    sentence: (f) => get("summaries")[f] ?? "",
    cells(f) {
      const size = get("grid")[0] * get("grid")[1];
      return bytes(get("data")).subarray(f * size, (f + 1) * size);
    },
    /** Frames whose tiles are fetched, the nearest first. */
    wanted: (f) => [...Array(get("ranges").length).keys()].sort((a, b) => Math.abs(a - f) - Math.abs(b - f)),
    asks: () => ({}),
    exact: (f, answer) => answer.texts?.[f],
    approx(f, row, col) {
      const [grid, step] = [get("grid"), get("step")];
      const [lo, hi] = get("ranges")[f];
      const k = this.cells(f)[Math.floor(row / step[0]) * grid[1] + Math.floor(col / step[1])];
      return k === NAN ? "≈ NaN" : `≈ ${fmt(lo + (k / 254) * (hi - lo), 2)}`;
    },
    /** Finished columns stand before the mark, waiting ones behind it. */
    waits: (f, column) => Number(get("column_mark") >= 0 && column > get("column_mark")),
    marks: () => (get("column_mark") >= 0 ? [get("column_mark")] : []),
    veiled: () => get("column_mark") >= 0,
  };
}
