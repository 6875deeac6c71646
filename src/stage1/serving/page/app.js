// The frame: who is asked, which view is shown, what the server says of itself. Views are functions in views/.
import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, call, key, setKey } from "./api.js";
import { Audit } from "./views/audit.js";
import { History } from "./views/history.js";
import { Models } from "./views/models.js";
import { Now } from "./views/now.js";
import { Try } from "./views/try.js";

const VIEWS = {
  now: ["Now", Now],
  history: ["History", History],
  try: ["Try an image", Try],
  audit: ["Audit queue", Audit],
  models: ["Models", Models],
};

const shown = () => {
  const name = location.hash.replace(/^#\/?/, "");
  return VIEWS[name] ? name : "now";
};

function KeyForm({ onDone }) {
  const [value, setValue] = useState("");
  const send = (event) => {
    event.preventDefault();
    setKey(value.trim());
    onDone();
  };
  return html`<form class="panel" onSubmit=${send}>
    <h2>API key</h2>
    <p>This server asks for a key. It is kept in this tab only.</p>
    <div class="row">
      <label>Key<input type="password" autocomplete="off" value=${value} onInput=${(e) => setValue(e.target.value)} /></label>
      <button class="main" type="submit">Use this key</button>
    </div>
  </form>`;
}

/** A view below its heading; the heading takes the focus when the view changes, so that a keyboard begins there. */
function Frame() {
  const [name, setName] = useState(shown());
  const [asks, setAsks] = useState(0);
  const [refused, setRefused] = useState(null);
  const heading = useRef(null);
  const moved = useRef(false);

  useEffect(() => {
    const onHash = () => {
      moved.current = true;
      setRefused(null);
      setName(shown());
    };
    addEventListener("hashchange", onHash);
    return () => removeEventListener("hashchange", onHash);
  }, []);

  useEffect(() => {
    document.title = `${VIEWS[name][0]} · Stage-1 Pro`;
    if (moved.current && heading.current) heading.current.focus();
  }, [name]);

  const onProblem = (problem) => {
    if (problem instanceof Refused && problem.status === 401) setRefused(problem);
    else if (!(problem instanceof Refused)) throw problem;
  };
  const [title, View] = VIEWS[name];
  return html`
    <a class="skip button" href="#main" onClick=${(e) => (e.preventDefault(), heading.current.focus())}>Skip to content</a>
    <header><div>
      <strong>Stage-1 Pro</strong>
      <nav aria-label="Views">${Object.entries(VIEWS).map(
        ([each, [words]]) =>
          html`<a href=${`#/${each}`} aria-current=${each === name ? "page" : undefined}>${words}</a>`,
      )}</nav>
      ${key() && html`<button onClick=${() => (setKey(""), setAsks(asks + 1))}>Forget the key</button>`}
    </div></header>
    <main id="main">
      <h1 tabindex="-1" ref=${heading}>${title}</h1>
      ${refused && html`<p class="problem" role="alert">${refused.message}</p>
        <${KeyForm} onDone=${() => (setRefused(null), setAsks(asks + 1))} />`}
      <${View} key=${`${name} ${asks}`} call=${call} onProblem=${onProblem} />
    </main>`;
}

render(html`<${Frame} />`, document.getElementById("app"));
