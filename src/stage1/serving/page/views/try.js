// Try an image: it goes the way of every request, so that it is stored and counted like one.
import { html, useState } from "../vendor/preact-htm.js";
import { Refused } from "../api.js";
import { Exit, Problem, Tag } from "../parts.js";
import { percent } from "../words.js";

export function Try({ call, onProblem }) {
  const [asked, setAsked] = useState(null);
  const [over, setOver] = useState(false);

  const ask = async (file) => {
    if (!file) return;
    const url = URL.createObjectURL(file);
    setAsked((before) => (before && URL.revokeObjectURL(before.url), { file, url }));
    const form = new FormData();
    form.append("image", file, file.name);
    try {
      const answer = await call("v1/predict", { method: "POST", body: form });
      setAsked({ file, url, answer });
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
      onProblem(problem);
      setAsked({ file, url, problem });
    }
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    ask(event.dataTransfer.files[0]);
  };
  return html`
    <p>The image is decided, stored and counted like that of any other request.</p>
    <label class=${`drop ${over ? "over" : ""}`} onDrop=${drop} onDragOver=${(e) => (e.preventDefault(), setOver(true))}
      onDragLeave=${() => setOver(false)}>
      Drop a JPEG or PNG here, or choose one
      <input type="file" accept="image/*" onChange=${(e) => ask(e.target.files[0])} />
    </label>
    ${asked && html`<div class="cards" style="margin-top:14px">
      <div class="panel"><img class="photo" src=${asked.url} alt=${`The image ${asked.file.name}`} /></div>
      <div class="panel" aria-live="polite">
        ${!asked.answer && !asked.problem && html`<p>Asking.</p>`}
        <${Problem} of=${asked.problem} />
        ${asked.answer && html`<${Answer} answer=${asked.answer} />`}
      </div>
    </div>`}`;
}

function Answer({ answer }) {
  const row = answer.answers[0];
  return html`
    <h2>${row.exit ? row.label : "Passed on"} <${Exit} exit=${row.exit} /></h2>
    <p>${row.exit ? "The first stage answers." : "The first stage does not answer this image."}
      ${row.reason ? ` ${row.reason[0].toUpperCase()}${row.reason.slice(1)}.` : ""}</p>
    ${Object.entries(row.probabilities || {}).map(([name, share]) => html`
      <p style="margin-bottom:6px">${name}: ${percent(share)}</p>
      <div class="bar" style="margin-bottom:12px" aria-hidden="true"><span style=${`width:${100 * share}%`}></span></div>`)}
    <dl class="pair">
      <dt>Certificate</dt><dd><${Tag} kind=${answer.state}>${answer.state}<//></dd>
      <dt>Model</dt><dd>${answer.model} ${answer.version}</dd>
      <dt>Request</dt><dd class="mono">${answer.request_id}</dd>
    </dl>`;
}
