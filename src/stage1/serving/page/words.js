// How numbers and states are said: one place, so that every view says the same.
export const percent = (share) => (share === null || !Number.isFinite(share) ? "–" : `${(100 * share).toFixed(1)} %`);
export const count = (number) => Number(number).toLocaleString("en-US").replaceAll(",", " ");
export const time = (seconds) => new Date(1000 * seconds).toLocaleString("sv-SE");
export const short = (digest) => (digest || "").replace(/^sha256:/, "").slice(0, 12);
export const milliseconds = (value) => (Number.isFinite(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} ms` : "–");

export const STATES = {
  VALID: "The certificate is valid: exits are answered under its guarantee.",
  DEGRADED: "Degraded: something casts doubt on the certificate. Images are still answered; its guarantee may not hold for them.",
  VOID: "Void: no guarantee holds here, so every image defers.",
};
