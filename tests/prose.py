"""Check the plain English of docstrings, comments, messages and pages. Usage: python tests/prose.py [FILE ...]"""

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_WORDS = 20  # in a sentence
OPENINGS = ('What', 'Whether', 'Of', 'Where', 'That', 'How', 'Whatever', 'Whoever', 'Nobody')
WORDS = (
    *('whatever', 'whoever', 'nobody', 'anew', 'but for', 'goes on', 'go on', 'gone on', 'going on', 'alone'),
    *(r'(?:is|are|was|were) no (?!longer)', r'(?:is|are|was|were) none', r'says (?:which|what|no|so)', 'legend'),
)
FORBIDDEN = re.compile(rf'\b(?:{"|".join(WORDS)})\b', re.IGNORECASE)


def check_python(source: str) -> list[tuple[int, str]]:
    """Return (line, complaint) for the docstrings, comments and longer strings of a module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            text = ast.get_docstring(node)
            if text:
                line = node.body[0].lineno
                found += [(line, f'docstring begins with {word!r}') for word in _openings(text)]
                found += [(line, complaint) for complaint in check_text(_prose_of_docstring(text))]
    for line, comment in _comment_blocks(source):
        found += [(line, complaint) for complaint in check_text(comment)]
    for line, text in _messages(source):
        found += [(line, complaint) for complaint in check_text(text)]
    return sorted(set(found))


def check_markdown(text: str) -> list[tuple[int, str]]:
    """Return (line, complaint) for the paragraphs of a page, without its code and tables."""
    found, paragraph, start, is_code = [], [], 1, False
    for number, line in enumerate([*text.splitlines(), ''], 1):
        if line.startswith('```'):
            is_code = not is_code
            line = ''
        is_prose = not is_code and line.strip() and not line.startswith(('    ', '|', '#'))
        if is_prose and re.match(r'\s*(?:[-*]|\d+\.) ', line):
            found += [(start, complaint) for complaint in check_text(' '.join(paragraph))]
            paragraph = []
        if is_prose:
            start = start if paragraph else number
            paragraph.append(line.strip())
        elif paragraph:
            found += [(start, complaint) for complaint in check_text(' '.join(paragraph))]
            paragraph = []
    return found


def check_text(text: str) -> list[str]:
    """Return the complaints about plain prose: forbidden words and long sentences."""
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', re.sub(r'`[^`]*`', 'code', text))
    found = [f'avoid {match.group(0)!r}' for match in FORBIDDEN.finditer(plain)]
    for sentence in re.split(r'[.!?;:][*_)"\']*\s+|\n\s*\n', plain):
        words = [word for word in sentence.split() if re.search('[a-zA-Z]', word)]
        if len(words) > MOST_WORDS:
            found.append(f'{len(words)} words in one sentence: {" ".join(words[:8])} ...')
    return found


def _openings(text):
    first = text.split('. ')[0].splitlines()[0]
    return [word for word in OPENINGS if re.match(rf'{word}\b', text) and '?' not in first]


def _prose_of_docstring(text):
    """Doctests, formulas and tables are left out; every entry of a list is a paragraph."""
    paragraphs, hanging = [[]], 0
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if not line.strip() or line.lstrip().startswith(('>>>', '...', '|')) or (indent == 4 and hanging != 4):
            paragraphs.append([])
        elif re.match(r'\s*(?:\*{0,2}\w[\w, .*`/]*:( |$)|- )', line):
            paragraphs.append([line.strip()])
            hanging = indent + 2
        else:
            if indent not in (0, hanging):
                paragraphs.append([])
            paragraphs[-1].append(line.strip())
    return '\n\n'.join(' '.join(lines) for lines in paragraphs)


def _comment_blocks(source):
    """Comments on lines of their own that follow each other are one text."""
    blocks = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip('#: ')
        is_own_line = token.line.lstrip().startswith('#')
        if is_own_line and blocks and blocks[-1][2] == line - 1:
            blocks[-1][1] += ' ' + text
            blocks[-1][2] = line
        else:
            blocks.append([line, text, line if is_own_line else -1])
    return [(line, text) for line, text, _ in blocks]


def _messages(source):
    """Strings of three words or more, f-strings with their values left out."""
    tree, found = ast.parse(source), []
    docs = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = ''.join(part.value if isinstance(part, ast.Constant) else 'x' for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
            text = node.value
        else:
            continue
        if len(text.split()) >= 3:
            found.append((node.lineno, text))
    return found


def _has_docstring(node):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


def check_file(path: Path) -> list[str]:
    """Return 'path:line: complaint' for a Python file or a page."""
    text = path.read_text(encoding='utf-8')
    found = check_markdown(text) if path.suffix == '.md' else check_python(text)
    return [f'{path}:{line}: {complaint}' for line, complaint in found]


def list_files(root: Path = ROOT) -> list[Path]:
    """List all files whose prose is checked."""
    folders = ('pad_jax', 'configs', 'benchmarks', 'docs')
    found = [path for folder in folders for kind in ('*.py', '*.md') for path in sorted((root / folder).rglob(kind))]
    return [*found, root / 'README.md', root / 'train.py']


if __name__ == '__main__':
    paths = [Path(name) for name in sys.argv[1:]] or list_files(Path.cwd())
    complaints = [complaint for path in paths for complaint in check_file(path)]
    print(*complaints, sep='\n')
    sys.exit(bool(complaints))
