// A button in a table's head sorts its rows: cells carry their value in data-v where it is not their text.
const valueOf = (row, column) => {
  const cell = row.cells[column], value = cell.dataset.v ?? cell.textContent.trim();
  return value === '' || isNaN(value) ? value : Number(value);
};
const compare = (a, b) => {
  if (a === '' || b === '') return a === b ? 0 : (a === '' ? Infinity : -Infinity); // unknown ones are last
  return typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});
};
function sort(button) {
  const head = button.closest('th'), table = head.closest('table'), column = head.cellIndex;
  const down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const rows = [...table.tBodies[0].rows].map(row => [valueOf(row, column), row]);
  rows.sort(([a], [b]) => {
    const order = compare(a, b);
    return down && Number.isFinite(order) ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
for (const button of document.querySelectorAll('th button')) button.addEventListener('click', () => sort(button));
// A link to a run, or into one, opens it.
function reveal() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const run = target && target.closest('details');
  if (run) { run.open = true; target.scrollIntoView(); }
}
addEventListener('hashchange', reveal);
reveal();
