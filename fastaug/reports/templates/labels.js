const data = JSON.parse(document.getElementById('data').textContent);
const rows = [...document.querySelectorAll('tr.row')];
const pick = name => document.getElementById(name);
function show() {
  const given = pick('given').value, looks = pick('looks').value, split = pick('split').value;
  let shown = 0;
  for (const row of rows) {
    const hidden = (given && row.dataset.given !== given) || (looks && row.dataset.looks !== looks)
      || row.dataset.split !== split;
    row.hidden = hidden;
    shown += !hidden;
  }
  pick('shown').textContent = shown;
}
function ticked() { return rows.filter(row => row.querySelector('input[type=checkbox]')?.checked); }
function lines() {
  const found = new Map(data.replaced);
  for (const row of ticked()) found.set(+row.dataset.id, row.querySelector('input.name').value);
  return [...found].map(([id, name]) => id + '\t' + name + '\n').join('');
}
function check() {
  const names = new Set(data.classes);
  const wrong = ticked().find(row => !names.has(row.querySelector('input.name').value));
  pick('count').textContent = ticked().length;
  pick('wrong').textContent = wrong ? 'no class: ' + wrong.querySelector('input.name').value : '';
  pick('save').disabled = Boolean(wrong);
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([lines()], {type: 'text/tab-separated-values'}));
  link.download = data.file;
  link.click();
}
for (const name of ['given', 'looks', 'split']) pick(name).addEventListener('change', show);
for (const row of rows) row.addEventListener('input', check);
for (const row of document.querySelectorAll('button.pair')) row.addEventListener('click', () => {
  pick('given').value = row.dataset.given; pick('looks').value = row.dataset.looks;
  pick('split').value = row.dataset.split; show();
});
pick('all').addEventListener('click', () => {
  for (const row of rows.filter(row => !row.hidden))
    row.querySelectorAll('input[type=checkbox]').forEach(box => { box.checked = true; });
  check();
});
pick('save').addEventListener('click', save);
show(); check();
