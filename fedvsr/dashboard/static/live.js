"use strict";
// Asks the server again and again, and shows whether it answers.
const live = (() => {
  const { byId, element } = parts;
  const connection = byId("connection");
  // Seconds between two requests: while something changes, and once nothing does.
  const BUSY_S = 1, IDLE_S = 5, LOST_S = 3;

  const time = (text) => new Date(text).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const number = (value, digits, unit = "") => value == null ? "–" : `${value.toFixed(digits)}${unit}`;
  const signed = (value, digits, unit = "") => value == null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}${unit}`;
  function duration(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    const minutes = Math.floor(s / 60);
    if (minutes < 60) return `${minutes} min ${s % 60} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }
  function badge(node, status) {
    if (node.dataset.status === status) return;
    node.className = "badge";
    node.dataset.status = status;
    node.textContent = status;
  }
  function say(text, lost = false) {
    if (connection.textContent !== text) connection.textContent = text;
    connection.classList.toggle("lost", lost);
  }

  // Ask for `url`; `show` gets what has changed, and says whether more is to come soon.
  function follow(url, show) {
    let tag = null, busy = true, timer = null, asking = false;
    async function ask() {
      if (asking || document.hidden) return;
      asking = true;
      clearTimeout(timer);
      let wait = LOST_S;
      try {
        const response = await fetch(url, {
          headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store", signal: AbortSignal.timeout(30000),
        });
        if (response.status === 200) {
          busy = show(await response.json());
          tag = response.headers.get("ETag");
        }
        if (response.status === 403) {
          say("The server was started again: open the address that it has printed.", true);
          return;
        }
        if (response.status === 404) say("This run is no longer there.", true);
        else if (response.status >= 400) say(`The server cannot read it now (${response.status}); trying again.`, true);
        else {
          say(busy ? "Updates by itself." : "Nothing is running; updates by itself.");
          wait = busy ? BUSY_S : IDLE_S;
        }
      } catch (error) {
        if (error instanceof TypeError || error.name === "TimeoutError") say("The server does not answer; trying again.", true);
        else throw error;
      } finally {
        asking = false;
        timer = setTimeout(ask, 1000 * wait);
      }
    }
    document.addEventListener("visibilitychange", ask);
    ask();
  }

  return { follow, badge, duration, element, number, signed, time };
})();
