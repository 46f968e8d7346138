/** Requests to the server that this page came from, and its answers. */

/** What went wrong, in one line for the reader, with the pictures that were refused: {name, error}. */
export class Failure extends Error {
  constructor(line, refused = []) {
    super(line);
    this.refused = refused;
  }
}

/** Return the document that the server answers: to GET, or to POST if there is a body. */
export async function ask(path, body = undefined, signal = undefined) {
  const response = await send(path, body, signal);
  return response.json();
}

/** Yield the events of a stream until the one that is "done", and return its result. */
export async function* events(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let result = null;
  for (;;) {
    const { value, done } = await reader.read().catch(explain);
    if (done && !result) throw new Failure("The app ended before the pictures were done.");
    if (done) return result;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const event of lines.filter(Boolean).map(line => JSON.parse(line))) {
      if (event.event === "error") throw new Failure(event.error);
      if (event.event === "done") ({ result } = event);
      else yield event;
    }
  }
}

async function send(path, body, signal) {
  const posted = body && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, { signal, ...posted }).catch(explain);
  if (response.ok) return response;
  const { error, refused } = await response.json().catch(() => ({}));
  throw new Failure(error ?? `The app answered ${response.status}.`, refused);
}

function explain(error) {
  if (error.name === "AbortError") throw error;
  throw new Failure("The app does not answer. Does vdmctl app still run?");
}
