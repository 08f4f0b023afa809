// The colours of queries, the same as in overlay, report and exports (worker/colors.py; a test compares them).

export const QUERY_COLORS = [
  [0, 185, 90],
  [30, 110, 230],
  [240, 140, 0],
  [0, 160, 190],
  [205, 175, 0],
  [225, 45, 60],
  [130, 90, 220],
  [120, 105, 90],
];

/** The RGB colour of a query. */
export const queryColor = (query) => QUERY_COLORS[query % QUERY_COLORS.length];
