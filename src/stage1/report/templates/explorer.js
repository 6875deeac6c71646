"use strict";
// The threshold explorer: counts, coverage and exact bounds at any pair of thresholds, from the calibration scores in this page.
// Exit as class 0 iff score < lo, as class 1 iff score > hi; null: that side never exits. No library, no network.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("explorer-data").textContent);

  // ---- numbers ----------------------------------------------------------------------------------------------------

  const unpack = (text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 8 }, (_, i) => view.getFloat64(8 * i, true));
  };

  // The first place in rising `values` that holds at least `x` (`past`: more than `x`).
  const place = (values, x, past) => {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < x || (past && values[middle] === x)) low = middle + 1; else high = middle;
    }
    return low;
  };

  // log Gamma(x), x > 0: Stirling's series after shifting x to at least 10; relative error below 1e-14.
  const logGamma = (x) => {
    let shift = 0;
    while (x < 10) shift -= Math.log(x++);
    const r = 1 / x, s = r * r;
    const series = r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s * (1 / 1188 - s * (691 / 360360))))));
    return shift + (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series;
  };

  // The regularised incomplete beta function I_x(a, b): continued fraction, Lentz's method.
  const incompleteBeta = (a, b, x) => {
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(b, a, 1 - x);
    const tiny = 1e-300, whole = (value) => (Math.abs(value) < tiny ? tiny : value);
    let c = 1, d = 1 / whole(1 - (a + b) * x / (a + 1)), sum = d;
    for (let m = 1; m < 100000; m++) {
      const even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
      d = 1 / whole(1 + even * d); c = whole(1 + even / c); sum *= d * c;
      const odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
      d = 1 / whole(1 + odd * d); c = whole(1 + odd / c); sum *= d * c;
      if (Math.abs(d * c - 1) < 1e-15) break;
    }
    return Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log1p(-x)) * sum / a;
  };

  // Clopper and Pearson's upper bound of a risk at confidence 1 - delta: the p with P(Bin(n, p) <= errors) = delta.
  const binomialUpper = (errors, n, delta) => {
    if (errors >= n) return 1;
    let low = 0, high = 1;
    for (let i = 0; i < 60; i++) {
      const middle = (low + high) / 2;
      if (incompleteBeta(errors + 1, n - errors, middle) < 1 - delta) low = middle; else high = middle;
    }
    return (low + high) / 2;
  };

  // ---- numbers as text, rounded as everywhere on this page -----------------------------------------------------------

  const decimals = (share) => (share >= 10 ? 1 : share >= 0.1 || share === 0 ? 2 : 1 - Math.floor(Math.log10(share)));
  const percent = (value) => {
    const share = 100 * value;
    let text = share.toFixed(decimals(share));
    if (Number(text) === 100 && share < 100) text = share.toFixed(6);
    if (text.includes(".")) text = text.replace(/0+$/, "").replace(/\.$/, "");
    return text + "\u00a0%";
  };
  const upperPercent = (value) => {
    if (value <= 0) return percent(value);
    const scale = 10 ** decimals(100 * value);
    return percent(Math.min(1, Math.ceil(100 * value * scale - 1e-6) / scale / 100));
  };
  const whole = (value) => value.toString().replace(/\B(?=(\d{3})+$)/g, ",");
  const number = (value) => (value === null ? "never" : Number(value.toPrecision(4)).toString());

  // ---- thresholds: one step of a slider for each way to part the calibration scores -----------------------------------

  const [negatives, positives] = data.scores.map(unpack);
  const distinct = Float64Array.from(new Set([...negatives, ...positives])).sort();
  const last = distinct.length - 1;
  const room = (distinct[last] - distinct[0]) / 50 || 1;
  const middles = Array.from({ length: last }, (_, i) => distinct[i] + (distinct[i + 1] - distinct[i]) / 2);
  // Step i + 1 of lo: i distinct scores lie below it. Step i of hi: i distinct scores do not lie above it. The far step: never.
  const steps = {
    lo: [null, distinct[0], ...middles, distinct[last] + room],
    hi: [distinct[0] - room, ...middles, distinct[last], null],
  };
  const stepOf = {
    lo: (value) => (value === null ? 0 : place(distinct, value, false) + 1),
    hi: (value) => (value === null ? last + 2 : place(distinct, value, true)),
  };
  // The policy's own threshold stands for its step, so that the slider comes back to it exactly.
  for (const side of ["lo", "hi"]) if (data[side] !== null) steps[side][stepOf[side](data[side])] = data[side];

  const state = { lo: data.lo, hi: data.hi };
  const crossed = (lo, hi) => lo !== null && hi !== null && lo > hi;

  // ---- what is shown ---------------------------------------------------------------------------------------------------

  const put = (id, text, value) => {
    const cell = find(id);
    cell.textContent = text;
    if (value !== undefined) cell.dataset.value = String(value);
    return cell;
  };

  const show = () => {
    const { lo, hi } = state;
    const counts = [negatives, positives].map((scores) => {
      const low = lo === null ? 0 : place(scores, lo, false);
      const high = hi === null ? 0 : scores.length - place(scores, hi, true);
      return [low, scores.length - low - high, high];
    });
    counts.forEach((row, k) => row.forEach((count, side) => {
      const total = row[0] + row[1] + row[2];
      const cell = put(`x-count-${k}-${side}`, whole(count), count);
      cell.parentElement.style.setProperty("--w", `${total ? 100 * count / total : 0}%`);
      put(`x-share-${k}-${side}`, total ? percent(count / total) : "–");
    }));
    const [[right0, , wrong0], [wrong1, , right1]] = counts;
    const exits = right0 + wrong0 + wrong1 + right1, n = negatives.length + positives.length;
    put("x-coverage", percent(exits / n), exits / n);
    put("x-exits", `${whole(exits)} of ${whole(n)}`);
    const at = lo === data.lo && hi === data.hi;
    const certified = data.certified && at;
    data.risks.forEach((risk) => {
      const [errors, trials] = {
        fnr: [wrong1, wrong1 + right1], miss_rate: [wrong1, positives.length], fpr: [wrong0, wrong0 + right0],
        false_exit_rate: [wrong0, negatives.length], error: [wrong0 + wrong1, exits],
      }[risk.name];
      const never = risk.sides.every((side) => state[side] === null);
      const bound = never ? 0 : binomialUpper(errors, trials, risk.delta);
      put(`x-${risk.name}-errors`, whole(errors), errors);
      put(`x-${risk.name}-n`, whole(trials), trials);
      put(`x-${risk.name}-bound`, upperPercent(bound), bound);
      const within = bound <= risk.target;
      put(`x-${risk.name}-verdict`, certified ? "certified" : never ? "never given" : within ? "within target" : "above target").className =
        certified ? "tag consistent" : within ? "tag" : "tag contradicts";
    });
    put("x-state", certified ? "certified" : "not certified").className = certified ? "tag consistent" : "tag differs";
    put("x-why", certified ? "These are the certified thresholds."
      : !data.certified && at ? "Nothing is certified in this run; these are its thresholds."
      : "These thresholds were chosen after looking at the images that would have to vouch for them.");
    for (const side of ["lo", "hi"]) {
      const value = state[side], slider = find(`x-${side}`), step = stepOf[side](value);
      if (Number(slider.value) !== step) slider.value = step;
      put(`x-${side}-value`, number(value), value === null ? "none" : value);
      slider.setAttribute("aria-valuetext", value === null ? "never exits" : number(value));
    }
    const left = lo === null ? 0 : place(distinct, lo, false), right = hi === null ? last + 1 : place(distinct, hi, true);
    const strip = find("x-strip");
    strip.style.setProperty("--lo", `${100 * left / (last + 1)}%`);
    strip.style.setProperty("--between", `${100 * Math.max(0, right - left) / (last + 1)}%`);
  };

  // ---- what moves it: the sliders, the button, the address (#lo=-3.5&hi=0.18, `none`: that side never exits) -----------

  const fromAddress = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const read = (side) => {
      const text = asked.get(side);
      return text === null ? data[side] : text === "none" ? null : text.trim() === "" ? NaN : Number(text);
    };
    const lo = read("lo"), hi = read("hi");
    const usable = [lo, hi].every((value) => value === null || Number.isFinite(value)) && !crossed(lo, hi);
    [state.lo, state.hi] = usable ? [lo, hi] : [data.lo, data.hi];
    show();
  };
  let waiting = 0;
  const toAddress = () => {
    // Late and once: browsers slow down a page that changes its address with every step of a slider.
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const at = state.lo === data.lo && state.hi === data.hi;
      const address = at ? location.pathname + location.search : `#lo=${state.lo ?? "none"}&hi=${state.hi ?? "none"}`;
      try { history.replaceState(null, "", address); } catch { /* an embedded page may have no address of its own */ }
    }, 400);
  };
  for (const side of ["lo", "hi"]) {
    const slider = find(`x-${side}`);
    slider.max = last + 2;
    slider.addEventListener("input", () => {
      let value = steps[side][Number(slider.value)];
      const other = state[side === "lo" ? "hi" : "lo"];
      if (crossed(side === "lo" ? value : other, side === "lo" ? other : value)) value = other;
      state[side] = value;
      show();
      toAddress();
    });
  }
  find("x-reset").addEventListener("click", () => {
    [state.lo, state.hi] = [data.lo, data.hi];
    show();
    toAddress();
  });
  addEventListener("hashchange", fromAddress);
  find("x-controls").hidden = false;
  fromAddress();
})();
