// Now: the state of each model in words, and what came in the last hour.
import { html } from "../vendor/preact-htm.js";
import { Problem, StateOf, useAsked } from "../parts.js";
import { count, milliseconds, percent, time } from "../words.js";

export function Now({ call, onProblem }) {
  const models = useAsked(() => call("v1/models"), onProblem, 5);
  const traffic = useAsked(() => call(`v1/traffic`), onProblem, 5);
  const seen = traffic.value;
  return html`
    <${Problem} of=${models.problem} />
    ${models.value && models.value.models.map((model) => html`<${StateOf} key=${model.name + model.version} model=${model} />`)}
    <${Problem} of=${models.problem ? null : traffic.problem} />
    ${seen && html`
      <div class="cards">
        <div class="panel"><h3>Images in the last hour</h3><p class="big">${count(seen.images)}</p>
          <p class="soft">by this server since ${time(seen.since)}</p></div>
        <div class="panel"><h3>Exit</h3><p class="big">${seen.images ? percent(seen.exits / seen.images) : "–"}</p>
          <p class="soft">${count(seen.exits)} answered here, ${count(seen.images - seen.exits)} passed on</p></div>
        <div class="panel"><h3>Latency of an image, median</h3><p class="big">${milliseconds(seen.latency_ms.p50)}</p>
          <p class="soft">99 of 100 within about ${milliseconds(seen.latency_ms.p99)}</p></div>
      </div>
      <h2>Exits and deferrals, a bar a minute</h2>
      <div class="panel"><${Bars} seen=${seen} />
        <ul class="legend"><li><span class="exit"></span>exit</li><li><span class="defer"></span>defer</li></ul></div>`}`;
}

function Bars({ seen }) {
  const [wide, high] = [720, 150];
  const most = Math.max(1, ...seen.bars.map((bar) => bar.exits + bar.defers));
  const step = wide / seen.bars.length;
  const to = (number) => ((high - 4) * number) / most;
  const words = `Up to ${count(most)} images a minute in the last ${seen.bars.length} minutes.`;
  return html`<p class="ends"><span>${count(most)} a minute</span></p>
    <svg class="traffic" viewBox=${`0 0 ${wide} ${high}`} preserveAspectRatio="none" role="img" aria-label=${words}>
    <line x1="0" x2=${wide} y1=${high} y2=${high} />
    ${seen.bars.map((bar, index) => html`<g>
      <title>${bar.exits} exit, ${bar.defers} defer</title>
      <rect class="exit" x=${index * step + 1} width=${step - 2} y=${high - to(bar.exits)} height=${to(bar.exits)} />
      <rect class="defer" x=${index * step + 1} width=${step - 2}
        y=${high - to(bar.exits + bar.defers)} height=${to(bar.defers)} />
    </g>`)}
  </svg>
  <p class="ends"><span>${seen.bars.length} minutes ago</span><span>now</span></p>`;
}
