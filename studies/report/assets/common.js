"use strict";
// What the explorer and the replay share: elements, and numbers as people read them, with one minus sign and as many
// digits as an interval deserves, as in ground/numbers.py.
(function () {
  function make(name, className, text) {
    var element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function draw(name, attributes, text) {
    var element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.keys(attributes).forEach(function (key) { element.setAttribute(key, attributes[key]); });
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function fixed(value, digits) {
    var text = Math.abs(value).toFixed(digits), parts = text.split(".");
    parts[0] = parts[0].replace(/\B(?=(\d{3})+$)/g, ",");
    return (value < 0 && Number(text) ? "−" : "") + parts.join(".");
  }

  // How many digits after the point show a number of this size with so many significant ones.
  function digits(size, significant) {
    if (!(size > 0) || !isFinite(size)) return 0;
    return Math.min(Math.max(significant - 1 - Math.floor(Math.log10(size)), 0), 8);
  }

  // A mean with its interval: the interval's width has two digits; without one the mean has three. Null: there is none.
  function shown(mean, low, high) {
    if (mean === null) return "–";
    if (low === null || high === null) return fixed(mean, digits(Math.abs(mean), 3));
    var after = digits(high - low || Math.abs(mean), 2);
    return fixed(mean, after) + " [" + fixed(low, after) + ", " + fixed(high, after) + "]";
  }

  // What is paid, with its sign.
  function signed(value, after) {
    if (Math.abs(value) < 0.005) return "0";
    var size = after === undefined ? (Math.abs(value) < 0.095 ? 2 : 1) : after;
    return (value > 0 ? "+" : "") + fixed(value, size).replace(/\.0$/, "");
  }

  window.emojimazeCommon = { make: make, draw: draw, fixed: fixed, digits: digits, shown: shown, signed: signed };
})();
