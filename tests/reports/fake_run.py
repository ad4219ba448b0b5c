"""A fake run of a sweep: its variant name decides what it does. It leaves the files of a run."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    workdir, label = Path(sys.argv[1]), sys.argv[2]
    config = json.loads(sys.stdin.readline())
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir.parents[1] / 'order.txt').open('a') as order:
        order.write(f'{label}\n')
    if workdir.parent.name == 'fails':
        print('first it went well', file=sys.stderr)
        sys.exit('then the disk caught fire')
    if workdir.parent.name == 'vanishes':  # with its log
        shutil.rmtree(workdir.parent)
        sys.exit(1)
    if workdir.parent.name == 'crashes':
        os.kill(os.getpid(), signal.SIGKILL)
    if workdir.parent.name == 'waits' and not (workdir / 'checkpoint').exists():
        (workdir / 'begun').touch()
        sys.stdin.read()  # until the sweep stops it
        (workdir / 'checkpoint').touch()
        sys.exit(143)
    if workdir.parent.name.startswith('meets'):  # each waits for the other to run
        said = os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE', '')
        (workdir.parents[1] / f'{workdir.parent.name}.here').write_text(said)
        end = time.monotonic() + 20
        while len(list(workdir.parents[1].glob('meets*.here'))) < 2:
            if time.monotonic() > end:
                sys.exit('the other run did not start')
            time.sleep(0.01)
    (workdir / 'checkpoints' / '16').mkdir(parents=True)
    data = {'class_names': list('0123456789'), 'num_train': 1442, 'num_eval': 355}
    for name, content in (('data', data), ('config', config), ('timing', {'seconds_per_step': None})):
        (workdir / f'{name}.json').write_text(json.dumps(content))


if __name__ == '__main__':
    main()
