// Calls of the server's own API. The key stays in this tab (sessionStorage) and is sent as a bearer token only.
const KEY = "stage1-api-key";
export const key = () => sessionStorage.getItem(KEY) || "";
export const setKey = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

/** An answer that is no success: `status` of HTTP (0 where the server did not answer) and one line of words. */
export class Refused extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

const base = new URL("..", import.meta.url);

export async function call(path, options = {}) {
  const headers = { Accept: "application/json", ...(options.headers || {}) };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers });
  } catch {
    throw new Refused(0, "The server does not answer.");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok && !(options.alsoReads || []).includes(response.status)) {
    const words = (body && body.error && body.error.message) || `The server answered ${response.status}.`;
    throw new Refused(response.status, words);
  }
  return body;
}

export const post = (path, document, options = {}) =>
  call(path, {
    ...options,
    method: "POST",
    body: JSON.stringify(document),
    headers: { "Content-Type": "application/json", ...(options.headers || {}) },
  });

/** The picture of a stored image as an object URL; null where the server keeps no images. */
export async function picture(digest) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  const response = await fetch(new URL(`v1/images/${encodeURIComponent(digest)}`, base), { headers }).catch(() => null);
  return response && response.ok ? URL.createObjectURL(await response.blob()) : null;
}
