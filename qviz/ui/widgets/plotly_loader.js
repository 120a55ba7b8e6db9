export default {
  initialize({ model }) {
    getPlotly(model).catch(() => {}); // the charts say it in words
  },
  render({ el }) {
    el.hidden = true;
  },
};
