// History: every decision that the store holds, newest first.
import { html, useState } from "../vendor/preact-htm.js";
import { Exit, Problem, Tag, useAsked } from "../parts.js";
import { milliseconds, percent, short, time } from "../words.js";

const EACH = 50;

export function History({ call, onProblem }) {
  const [exit, setExit] = useState("");
  const [before, setBefore] = useState([]);
  const last = before[before.length - 1];
  const path = `v1/decisions?newest=true&limit=${EACH}${exit && `&exit=${exit}`}${last ? `&before=${last}` : ""}`;
  const { value, problem } = useAsked(() => call(path), onProblem, last ? 0 : 5, [path]);
  const rows = value ? value.decisions : [];
  return html`
    <div class="row">
      <label>Show<select value=${exit} onChange=${(e) => (setBefore([]), setExit(e.target.value))}>
        <option value="">all decisions</option><option value="true">exits</option><option value="false">deferrals</option>
      </select></label>
    </div>
    <${Problem} of=${problem} />
    ${value && !rows.length && html`<p class="soft">Nothing is stored ${exit ? "of this kind " : ""}yet.</p>`}
    ${rows.length > 0 && html`<div class="panel scroll"><table class="stack">
      <thead><tr><th>When</th><th>Image</th><th>Decision</th><th>Answer</th><th class="n">Its probability</th><th>State</th>
        <th class="n">Latency</th><th>Model</th></tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row.seq}>
        <td data-name="When">${time(row.received_at)}</td>
        <td data-name="Image">${row.image_id || html`<code>${short(row.image_digest)}</code>`}</td>
        <td data-name="Decision"><${Exit} exit=${row.exit} /></td>
        <td data-name="Answer">${row.label || "–"}</td>
        <td data-name="Its probability" class="n">${percent(row.probabilities.length ? Math.max(...row.probabilities) : null)}</td>
        <td data-name="State"><${Tag} kind=${row.state}>${row.state}<//></td>
        <td data-name="Latency" class="n">${milliseconds(row.latency_ms)}</td>
        <td data-name="Model">${row.model} ${row.version}</td>
      </tr>`)}</tbody>
    </table></div>
    <div class="row" style="margin-top:14px">
      <button disabled=${!before.length} onClick=${() => setBefore(before.slice(0, -1))}>Newer</button>
      <button disabled=${rows.length < EACH} onClick=${() => setBefore([...before, rows[rows.length - 1].seq])}>Older</button>
    </div>`}`;
}
