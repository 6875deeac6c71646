// Models and their lineage; an administrator loads another verified bundle, and with it goes back as well.
import { html, useState } from "../vendor/preact-htm.js";
import { Refused, post } from "../api.js";
import { Problem, StateOf, useAsked } from "../parts.js";
import { short } from "../words.js";

export function Models({ call, onProblem }) {
  const { value, problem, again } = useAsked(() => call("v1/models"), onProblem, 10);
  return html`<${Problem} of=${problem} />
    ${value && value.models.map((model) => html`<article key=${model.name + model.version}>
      <${StateOf} model=${model} />
      <div class="panel" style="margin-bottom:14px">
        <dl class="pair">
          <dt>Classes</dt><dd>${model.classes.join(", ")}</dd>
          <dt>Bundle</dt><dd class="mono" title=${model.bundle}>${short(model.bundle)}</dd>
          <dt>Policy</dt><dd class="mono">${model.policy}</dd>
        </dl>
      </div>
      <${Load} model=${model} onProblem=${onProblem} onDone=${again} />
    </article>`)}`;
}

function Load({ model, onProblem, onDone }) {
  const [folder, setFolder] = useState("");
  const [state, setState] = useState({});
  const send = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    try {
      const loaded = await post(`v1/models/${encodeURIComponent(model.name)}/load`, { bundle: folder });
      setState({ done: `${loaded.name} ${loaded.version} answers now.` });
      onDone();
    } catch (problem) {
      if (!(problem instanceof Refused)) throw problem;
      onProblem(problem);
      setState({ problem });
    }
  };
  return html`<form class="panel" onSubmit=${send} style="margin-bottom:26px">
    <h3>Promote another bundle, or roll back to an earlier one</h3>
    <p class="soft">It is verified and warmed up beside this one, then takes over; no request fails. Needs a key of scope admin.</p>
    <div class="row">
      <label style="flex:1 1 260px">Folder of the bundle, below the server's --load-from<input required value=${folder}
        onInput=${(e) => setFolder(e.target.value)} /></label>
      <button class="main" type="submit" disabled=${state.busy}>${state.busy ? "Loading" : "Load"}</button>
    </div>
    <${Problem} of=${state.problem} />
    <p role="status">${state.done || ""}</p>
  </form>`;
}
