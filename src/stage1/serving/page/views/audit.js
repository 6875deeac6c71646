// Audit queue: decisions that were drawn for a look. A key for each class, undo, skip; the model's own answer is told
// only after the label is given, so that nobody is led.
import { html, useEffect, useRef, useState } from "../vendor/preact-htm.js";
import { useOutbox } from "../outbox.js";
import { Photo, Problem, useAsked } from "../parts.js";
import { count, percent, time } from "../words.js";

const NAME = "stage1-annotator";

/** What waits, and the classes of each model that is served. */
const ask = (call) =>
  Promise.all([call("v1/audits?limit=100"), call("v1/models"), call("v1/store")]).then(([found, served, store]) => ({
    audits: found.decisions,
    open: store.counts.audits_open,
    classes: Object.fromEntries(served.models.map((model) => [`${model.name} ${model.version}`, model.classes])),
  }));

export function Audit({ call, onProblem }) {
  const [who, setWho] = useState(localStorage.getItem(NAME) || "");
  const [passed, setPassed] = useState([]);
  const [said, setSaid] = useState("");
  const [seen, setSeen] = useState("");
  const outbox = useOutbox(onProblem);
  const asked = useAsked(() => ask(call), onProblem, 20);

  // A label is of an image: one that was sent twice is shown once, and one whose label is on its way not again.
  const done = [...passed, ...outbox.unsent.map((label) => label.image_digest), outbox.held?.image_digest];
  const item = asked.value && asked.value.audits.find((each) => !done.includes(each.image_digest));
  const classes = (item && asked.value.classes[`${item.model} ${item.version}`]) || [];
  // What was not looked at has no label: keys count once the picture is on the screen.
  const ready = Boolean(item) && seen === item.image_digest && Boolean(who.trim());

  const give = (label) => {
    if (!ready) return;
    const { request_id, index, image_digest } = item;
    setPassed((before) => [...before, image_digest]);
    outbox.give({ request_id, index, image_digest, label, who: who.trim() });
    setSaid(`Labelled ${label}; the model had ${item.exit ? "answered" : "deferred, leaning to"} ${item.label || "nothing"}.`);
  };
  const undo = () => {
    const label = outbox.undo();
    if (!label) return;
    setPassed((before) => before.filter((each) => each !== label.image_digest));
    setSaid(`The label ${label.label} is taken back.`);
  };
  const skip = () => {
    if (!item) return;
    setPassed((before) => [...before, item.image_digest]);
    setSaid("Skipped; it is in the queue again when you come back.");
  };

  const acts = useRef(null);
  acts.current = { give, undo, skip, classes };
  useEffect(() => {
    const onKey = (event) => {
      if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
      if (/^(input|select|textarea)$/i.test(event.target.tagName)) return;
      const { give, undo, skip, classes } = acts.current;
      if (/^[1-9]$/.test(event.key) && classes[event.key - 1] !== undefined) give(classes[event.key - 1]);
      else if (event.key === "u") undo();
      else if (event.key === "s") skip();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  return html`
    <p>Images that were drawn by chance for a look, whatever they were answered. Their labels say how often the first
      stage is wrong where it answers; labels of images that somebody chose do not.</p>
    <div class="row"><label>Your name, stored with each label<input value=${who}
      onInput=${(e) => (setWho(e.target.value), localStorage.setItem(NAME, e.target.value))} /></label></div>
    <${Problem} of=${outbox.problem || asked.problem} />
    ${outbox.problem && html`<p class="note">${count(outbox.unsent.length)} labels wait in this browser until the server
      takes them.</p>`}
    ${asked.value && html`<p class="soft">${count(asked.value.open)} open.</p>`}
    <p role="status" aria-live="polite">${said}</p>
    ${asked.value && !item && html`<p>Nothing more waits here.</p>`}
    ${item && html`<section class="panel" aria-label="Image to label" aria-busy=${String(seen !== item.image_digest)}>
      <${Photo} digest=${item.image_digest} words="The image to label" onShown=${setSeen} />
      <p class="soft about">${item.image_id || item.image_digest.slice(0, 12)}, ${time(item.received_at)}. Drawn with a
        chance of ${percent(item.propensity)}.</p>
      ${!who.trim() && html`<p class="note">Give your name first: a label says who gave it.</p>`}
      ${!classes.length && html`<p class="note">Its model, ${item.model} ${item.version}, is not served any more: skip it.</p>`}
      <div class="answers">
        ${classes.map((name, index) => html`<button class="main" disabled=${!ready} onClick=${() => give(name)}>
          ${index < 9 && html`<kbd>${index + 1}</kbd> `}${name}</button>`)}
        <button onClick=${skip}><kbd>s</kbd> skip</button>
        <button disabled=${!outbox.held} onClick=${undo}><kbd>u</kbd> undo</button>
      </div>
    </section>`}
    ${!item && outbox.held && html`<button onClick=${undo}><kbd>u</kbd> undo</button>`}
    ${outbox.held && html`<p class="soft">Your last label is sent with the next one, or when you leave this view.</p>`}`;
}
