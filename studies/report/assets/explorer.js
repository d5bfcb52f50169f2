"use strict";
// The course explorer: arms and a measure along updates, tokens or KL, as curves with intervals and as a table.
(function () {
  var root = document.querySelector('[data-part="explorer"]'), data = window.emojimazeCourses;
  if (!root) return;
  var SERIES = 8, SHOWN = 6, say = window.emojimazeCommon, make = say.make, draw = say.draw;
  var AXES = {
    update: "updates of the last stage", tokens: "tokens of each member, millions", kl: "KL from the base, nats per episode"
  };
  // Where a line keeps what.
  var ARM = 0, COURSE = 1, BASES = 2, MEAN = 3, LOW = 4, HIGH = 5;

  function part(name) { return root.querySelector('[data-part="' + name + '"]'); }
  function choice(name) { return root.querySelector('[data-choice="' + name + '"]'); }

  if (!data) {
    part("told").textContent = "The courses cannot be loaded.";
    return;
  }

  // Arms are told apart by colour, mark and dashes.
  function mark(arm, x, y) {
    var size = 4, shapes = [
      ["circle", { cx: x, cy: y, r: size }],
      ["rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size }],
      ["path", { d: "M" + x + " " + (y - 5) + "l5 9h-10z" }],
      ["path", { d: "M" + x + " " + (y - 6) + "l5 6-5 6-5-6z" }]
    ];
    var shape = draw.apply(null, shapes[arm % shapes.length]);
    shape.setAttribute("class", "mark series-" + arm % SERIES);
    return shape;
  }

  function stroke(arm) { return "line series-" + arm % SERIES + " dash-" + Math.floor(arm / SERIES) % 3; }

  function fillMenu() {
    var select = choice("measure"), groups = {};
    data.measures.forEach(function (measure, index) {
      if (!groups[measure.group]) {
        groups[measure.group] = make("optgroup");
        groups[measure.group].label = measure.group;
        select.appendChild(groups[measure.group]);
      }
      var option = make("option", "", measure.label + (measure.unit ? " (" + measure.unit + ")" : ""));
      option.value = index;
      groups[measure.group].appendChild(option);
    });
    select.value = String(data.first);
    Array.prototype.forEach.call(choice("along").options, function (option) {
      option.disabled = data.courses.every(function (course) {
        return course[option.value].every(function (x) { return x === null; });
      });
    });
    Array.prototype.forEach.call(root.querySelectorAll("[data-choice]"), function (field) { field.disabled = false; });
  }

  function fillArms() {
    var there = data.measures[data.first].lines.map(function (line) { return line[ARM]; }).slice(0, SHOWN);
    data.arms.forEach(function (name, arm) {
      var label = make("label"), box = make("input"), swatch = draw("svg", { viewBox: "0 0 34 14", "class": "swatch", "aria-hidden": "true" });
      box.type = "checkbox";
      box.value = arm;
      box.checked = there.indexOf(arm) >= 0;
      swatch.appendChild(draw("path", { d: "M1 7h32", "class": stroke(arm) }));
      swatch.appendChild(mark(arm, 17, 7));
      label.appendChild(box);
      label.appendChild(swatch);
      label.appendChild(document.createTextNode(name));
      part("arms").appendChild(label);
    });
  }

  function measure() { return data.measures[Number(choice("measure").value)]; }

  // What is drawn: for each chosen arm its points from left to right, in the unit that is shown.
  function curves() {
    var chosen = measure(), along = choice("along").value, factor = percent() ? 100 : 1, boxes = {};
    Array.prototype.forEach.call(part("arms").querySelectorAll("input"), function (box) { boxes[box.value] = box; });
    Object.keys(boxes).forEach(function (arm) { boxes[arm].disabled = true; });
    var shown = [];
    chosen.lines.forEach(function (line) {
      boxes[line[ARM]].disabled = false;
      if (!boxes[line[ARM]].checked) return;
      var course = data.courses[line[COURSE]], points = [];
      function value(list, at) { return list[at] === null ? null : factor * list[at]; }
      line[MEAN].forEach(function (mean, at) {
        if (mean === null || course[along][at] === null) return;
        points.push({
          x: course[along][at], mean: value(line[MEAN], at), low: value(line[LOW], at), high: value(line[HIGH], at),
          update: course.update[at], tokens: course.tokens[at], kl: course.kl[at]
        });
      });
      points.sort(function (one, other) { return one.x - other.x; });
      if (points.length) shown.push({ arm: line[ARM], bases: line[BASES], points: points });
    });
    return shown;
  }

  function percent() { return measure().unit.indexOf("share") === 0; }

  function unit() { return percent() ? measure().unit.replace("share", "%") : measure().unit; }

  function steps(low, high, most) {
    var rough = (high - low) / most || 1, size = Math.pow(10, Math.floor(Math.log10(rough)));
    size *= [1, 2, 5, 10].find(function (times) { return times * size >= rough * 0.999; });
    var list = [];
    for (var at = Math.ceil(low / size - 1e-9); at * size <= high + 1e-9 * size; at++) list.push(at * size);
    return { list: list, digits: say.digits(size, 1) };
  }

  // Ticks of an axis whose early steps are wider: 0 and 1, 2, 5 times the powers of ten that have room.
  function sparse(first, last, place) {
    var list = [0], at = place(0);
    for (var power = Math.floor(Math.log10(first)); power <= Math.log10(last); power++) {
      [1, 2, 5].forEach(function (times) {
        var value = times * Math.pow(10, power);
        if (value < first / 2 || value > last || place(value) - at < 44) return;
        list.push(value);
        at = place(value);
      });
    }
    return list;
  }

  var state = { curves: [], at: 0, place: null, xs: [] };

  function show() {
    var frame = part("course"), shown = curves(), width = Math.max(frame.clientWidth, 260);
    var height = Math.round(Math.min(Math.max(width * 0.5, 230), 400)), left = 58, right = 14, top = 14, bottom = 46;
    var all = [].concat.apply([], shown.map(function (curve) { return curve.points; }));
    frame.setAttribute("aria-label", name());
    state = { curves: shown, at: 0, place: null, xs: [] };
    table(shown);
    if (!all.length) {
      frame.replaceChildren(make("p", "missing", "Nothing to draw: choose another arm, or another axis."));
      part("told").textContent = "";
      return;
    }
    var xs = all.map(function (point) { return point.x; }).sort(function (one, other) { return one - other; });
    state.xs = xs.filter(function (x, at) { return !at || x !== xs[at - 1]; });
    var values = [].concat.apply([], all.map(function (point) {
      return [point.mean, point.low, point.high].filter(function (value) { return value !== null; });
    }));
    var low = Math.min.apply(null, values), high = Math.max.apply(null, values), room = (high - low || Math.abs(high) || 1) * 0.06;
    low -= room;
    high += room;
    var first = state.xs.filter(function (x) { return x > 0; })[0] || 1, last = Math.max(state.xs[state.xs.length - 1], first);
    var log = choice("scale").value === "log", begin = Math.min(0, state.xs[0]);
    function share(x) { return log ? Math.log1p(Math.max(x, 0) / first) / Math.log1p(last / first) : (x - begin) / (last - begin || 1); }
    function px(x) { return left + share(x) * (width - left - right); }
    function py(value) { return top + (high - value) / (high - low) * (height - top - bottom); }
    state.place = px;
    var svg = draw("svg", { viewBox: "0 0 " + width + " " + height, width: width, height: height, role: "img", "aria-label": name() });
    var rows = steps(low, high, 5);
    rows.list.forEach(function (value) {
      svg.appendChild(draw("line", { x1: left, x2: width - right, y1: py(value), y2: py(value), "class": "grid" }));
      svg.appendChild(draw("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, say.fixed(value, rows.digits)));
    });
    var even = steps(begin, last, Math.max(2, Math.floor((width - left) / 80)));
    (log ? sparse(first, last, px) : even.list).forEach(function (value) {
      var text = say.fixed(value, log ? say.digits(value, 1) : even.digits);
      svg.appendChild(draw("line", { x1: px(value), x2: px(value), y1: height - bottom, y2: height - bottom + 5, "class": "axis" }));
      svg.appendChild(draw("text", { x: px(value), y: height - bottom + 19, "text-anchor": "middle" }, text));
    });
    svg.appendChild(draw("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, "class": "axis" }));
    svg.appendChild(draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", "class": "title" }, AXES[choice("along").value]));
    shown.forEach(function (curve) {
      var banded = curve.points.filter(function (point) { return point.low !== null && point.high !== null; });
      var edge = banded.map(function (point) { return px(point.x) + "," + py(point.high); }).concat(
        banded.slice().reverse().map(function (point) { return px(point.x) + "," + py(point.low); }));
      if (banded.length > 1) svg.appendChild(draw("polygon", { points: edge.join(" "), "class": "band series-" + curve.arm % SERIES }));
    });
    shown.forEach(function (curve) {
      svg.appendChild(draw("polyline", {
        points: curve.points.map(function (point) { return px(point.x) + "," + py(point.mean); }).join(" "), "class": stroke(curve.arm)
      }));
      curve.points.forEach(function (point) { svg.appendChild(mark(curve.arm, px(point.x), py(point.mean))); });
    });
    svg.appendChild(draw("line", { y1: top, y2: height - bottom, "class": "cursor" }));
    frame.replaceChildren(make("p", "axis-name", measure().label + (unit() ? " (" + unit() + ")" : "")), svg);
    part("told").setAttribute("aria-live", "polite");
    tell(state.xs.length - 1);
  }

  function name() { return measure().label + " along " + AXES[choice("along").value]; }

  function table(shown) {
    var head = make("tr"), body = make("tbody"), top = make("thead");
    var what = "Mean and 95 % interval" + (unit() ? " (" + unit() + ")" : "");
    ["Arm", "Updates", "Tokens (millions)", "KL (nats)", what, "Bases"].forEach(function (text, at) {
      var cell = make("th", at ? "number" : "", text);
      cell.scope = "col";
      head.appendChild(cell);
    });
    shown.forEach(function (curve) {
      curve.points.forEach(function (point) {
        var row = make("tr"), first = make("th", "", data.arms[curve.arm]);
        first.scope = "row";
        row.appendChild(first);
        [point.update, point.tokens, point.kl].forEach(function (value, at) {
          row.appendChild(make("td", "number", at ? say.shown(value, null, null) : say.fixed(value, 0)));
        });
        row.appendChild(make("td", "number", say.shown(point.mean, point.low, point.high)));
        row.appendChild(make("td", "number", String(curve.bases)));
        body.appendChild(row);
      });
    });
    top.appendChild(head);
    part("numbers").replaceChildren(make("caption", "unseen", measure().label + (unit() ? " (" + unit() + ")" : "")), top, body);
  }

  // Tell what stands at one place of the axis, of every curve its nearest point.
  function tell(at) {
    if (!state.xs.length) return;
    state.at = Math.max(0, Math.min(state.xs.length - 1, at));
    var x = state.xs[state.at], cursor = root.querySelector(".cursor"), along = choice("along").value;
    cursor.setAttribute("x1", state.place(x));
    cursor.setAttribute("x2", state.place(x));
    function place(x) { return along === "update" ? say.fixed(x, 0) : say.shown(x, null, null); }
    var told = state.curves.map(function (curve) {
      var near = curve.points.reduce(function (best, point) { return Math.abs(point.x - x) < Math.abs(best.x - x) ? point : best; });
      var text = data.arms[curve.arm] + " " + say.shown(near.mean, near.low, near.high) + (percent() ? " %" : "");
      return near.x === x ? text : text + " at " + place(near.x);
    });
    part("told").textContent = { update: "Update ", tokens: "Million tokens: ", kl: "KL " }[along] + place(x) + ": " + told.join("; ") + ".";
  }

  root.addEventListener("change", show);
  part("course").addEventListener("keydown", function (event) {
    var last = state.xs.length - 1, here = state.at;
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    var to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    part("told").setAttribute("aria-live", "polite");
    tell(to);
  });
  part("course").addEventListener("pointermove", function (event) {
    var svg = part("course").querySelector("svg");
    if (!svg || !state.xs.length) return;
    // A voice that follows a pointer would never fall silent.
    part("told").setAttribute("aria-live", "off");
    var x = event.clientX - svg.getBoundingClientRect().left, best = 0;
    state.xs.forEach(function (value, at) {
      if (Math.abs(state.place(value) - x) < Math.abs(state.place(state.xs[best]) - x)) best = at;
    });
    if (best !== state.at) tell(best);
  });

  fillMenu();
  fillArms();
  show();
  var seen = part("course").clientWidth;
  window.addEventListener("resize", function () {
    if (part("course").clientWidth === seen) return;
    seen = part("course").clientWidth;
    show();
  });
})();
