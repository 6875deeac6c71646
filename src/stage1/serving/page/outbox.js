// Labels on their way to the server. The newest is held back, so that it can be undone; those before it are sent in
// their order, again and again until the server has them. All of them are kept in this browser until then: a label that
// arrives twice is one label there.
import { useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Refused, post } from "./api.js";

const KEPT = "stage1-labels-to-send";
const AGAIN_S = 5;

const read = () => JSON.parse(localStorage.getItem(KEPT) || '{"held":null,"unsent":[]}');

const write = (box) =>
  box.held || box.unsent.length ? localStorage.setItem(KEPT, JSON.stringify(box)) : localStorage.removeItem(KEPT);

/** {held, unsent, problem, give(label), undo()}; a label is {request_id, index, image_digest, label, who}. */
export function useOutbox(onProblem) {
  const box = useRef(read());
  const sending = useRef(false);
  const [, draw] = useState(0);
  const [problem, setProblem] = useState(null);

  const change = (next) => {
    box.current = next;
    write(next);
    draw((round) => round + 1);
  };

  const send = async (options = {}) => {
    if (sending.current) return;
    sending.current = true;
    try {
      while (box.current.unsent.length) {
        const { image_digest, ...label } = box.current.unsent[0];
        await post("v1/feedback", { labels: [label] }, options);
        change({ ...box.current, unsent: box.current.unsent.slice(1) });
      }
      setProblem(null);
    } catch (refused) {
      if (!(refused instanceof Refused)) throw refused;
      onProblem(refused);
      setProblem(refused);
    } finally {
      sending.current = false;
    }
  };

  const release = () => {
    const { held, unsent } = box.current;
    if (held) change({ held: null, unsent: [...unsent, held] });
  };

  useEffect(() => {
    const leave = () => {
      release();
      send({ keepalive: true });
    };
    const timer = setInterval(send, 1000 * AGAIN_S);
    addEventListener("pagehide", leave);
    send();
    return () => {
      clearInterval(timer);
      removeEventListener("pagehide", leave);
      leave();
    };
  }, []);

  return {
    ...box.current,
    problem,
    give(label) {
      release();
      change({ ...box.current, held: label });
      send();
    },
    undo() {
      const { held } = box.current;
      change({ ...box.current, held: null });
      return held;
    },
  };
}
