// Parts that several views show.
import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { Refused, picture } from "./api.js";
import { STATES } from "./words.js";

/** What a call gave: {value, problem, again}. It is asked again every `seconds`, while the tab is looked at. */
export function useAsked(ask, onProblem, seconds = 0, deps = []) {
  const [got, setGot] = useState({ value: null, problem: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    let here = true;
    const once = () =>
      ask()
        .then((value) => here && setGot({ value, problem: null }))
        .catch((problem) => {
          if (!here) return;
          if (!(problem instanceof Refused)) throw problem;
          onProblem(problem);
          setGot((before) => ({ value: before.value, problem }));
        });
    once();
    const timer = seconds && setInterval(() => document.hidden || once(), 1000 * seconds);
    return () => {
      here = false;
      clearInterval(timer);
    };
  }, [round, ...deps]);
  return { ...got, again: () => setRound(round + 1) };
}

export const Problem = ({ of }) =>
  of && of.status !== 401 ? html`<p class="problem" role="alert">${of.message}</p>` : null;

export const Tag = ({ kind, children }) => html`<span class=${`tag ${String(kind).toLowerCase()}`}>${children}</span>`;

export const Exit = ({ exit }) => html`<${Tag} kind=${exit ? "exit" : "defer"}>${exit ? "exit" : "defer"}<//>`;

export function StateOf({ model }) {
  const kind = model.state.toLowerCase();
  return html`<section class=${`panel state ${kind}`} aria-label=${`State of ${model.name}`}>
    <h2>${model.name} ${model.version} <${Tag} kind=${model.state}>${model.state}<//></h2>
    <p>${STATES[model.state]}</p>
    ${model.reason && html`<p>Why: ${model.reason}</p>`}
  </section>`;
}

/** A stored image. onShown: called with its digest once it is on the screen, or once it is said that there is none. */
export function Photo({ digest, words, onShown }) {
  const [found, setFound] = useState({ digest: null, url: null });
  useEffect(() => {
    let made = null;
    let here = true;
    picture(digest).then((url) => {
      made = url;
      if (here) setFound({ digest, url });
      else if (url) URL.revokeObjectURL(url);
      if (here && !url) onShown(digest);
    });
    return () => {
      here = false;
      if (made) URL.revokeObjectURL(made);
    };
  }, [digest]);
  if (found.digest !== digest) return html`<p class="soft">Loading the image.</p>`;
  if (found.url === null) return html`<p class="note">The server keeps no picture of this image.</p>`;
  const shown = () => onShown(digest);
  // What a browser cannot draw (a TIFF, say) is no reason to hold the queue up: its words stand there, and skip is near.
  return html`<img class="photo" src=${found.url} alt=${words} onLoad=${shown} />`;
}
