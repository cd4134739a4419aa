(() => {
  const plots = [...document.querySelectorAll("[data-chart]")];
  const views = new Map();
  const narrowest = 210;
  const guess = 60;

  /** The config with each colour name replaced by what the current scheme says. */
  function paint(value, style) {
    if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return value.map((item) => paint(item, style));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, paint(item, style)]));
    return value;
  }

  function config(width) {
    const painted = paint(report.data.config, getComputedStyle(document.documentElement));
    painted.legend.columns = Math.max(1, Math.floor(width / 150));
    if (width < 420) painted.axis.labelLimit = 105;
    return painted;
  }

  /** Small multiples take as many columns as fit, and are drawn again once if their axes took more room than guessed. */
  function fitted(spec, width, room) {
    if (!spec.facet) return spec;
    const panels = new Set(spec.data.values.map((row) => row.facet)).size;
    const most = Math.max(1, Math.min(4, panels, Math.floor((width - room) / narrowest)));
    const columns = Math.ceil(panels / Math.ceil(panels / most));
    const side = Math.max(120, Math.floor((width - room - 20 * (columns - 1)) / columns));
    const height = spec.spec.width === spec.spec.height ? side : spec.spec.height; // what is square stays so
    return { ...spec, columns, spec: { ...spec.spec, width: side, height } };
  }

  async function embed(plot, room) {
    const width = plot.clientWidth;
    const spec = inline(plot.dataset.chart);
    views.get(plot)?.finalize();
    const options = { actions: false, renderer: "svg", config: config(width), tooltip: { theme: "plain" } };
    views.set(plot, await vegaEmbed(plot, fitted(spec, width, room), options));
    const over = plot.querySelector("svg").getBoundingClientRect().width - width;
    if (spec.facet && room === guess && (over > 0 || over < -4)) await embed(plot, guess + over);
  }

  /** The specification with its rows inside. */
  function inline(name) {
    const { datasets, ...spec } = report.data.charts[name];
    return datasets ? { ...spec, data: { values: datasets[spec.data.name] } } : spec;
  }

  let turn = 0;
  async function draw() {
    const mine = ++turn;
    for (const plot of plots) {
      if (mine !== turn) return;
      try {
        await embed(plot, guess);
      } catch (error) {
        plot.textContent = `This chart could not be drawn: ${error.message}`;
        console.error(error);
      }
    }
    if (mine === turn) document.documentElement.dataset.drawn = String(turn);
  }

  async function save(button) {
    const figure = button.closest("figure");
    const plot = figure.querySelector("[data-chart]");
    const [name, kind] = [plot.dataset.chart, button.dataset.save];
    if (kind === "csv") {
      const tips = Object.fromEntries(tooltips(inline(name)).map((tip) => [tip.field, tip.title]));
      const rows = inline(name).data.values.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [tips[key] ?? key, value])));
      report.save(`${name}.csv`, report.csv(rows), "text/csv");
      return;
    }
    const view = views.get(plot).view;
    if (kind === "svg") report.save(`${name}.svg`, await view.toSVG(), "image/svg+xml");
    else (await view.toCanvas(2)).toBlob((blob) => report.save(`${name}.png`, blob, "image/png"));
  }

  function tooltips(spec) {
    return (spec.spec ?? spec).layer.flatMap((layer) => layer.encoding.tooltip ?? []);
  }

  document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("print").addEventListener("change", draw);
  let width = innerWidth;
  let timer;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(draw, 150);
  });
  draw();
})();
