"""Chat templates of odd and hostile kinds."""

from __future__ import annotations

from random import Random

TEMPLATES = (
    "", " ", "{{", "{% for %}", "{{ messages }}", "{{ messages[0].content.foo.bar }}", "{{ undefined_thing }}",
    "{{ undefined_thing() }}",
    "{{ undefined_thing.x }}", "{{ 1 / 0 }}", "{{ 1 + 'a' }}", "{{ messages + 1 }}", "{{ [] | first | upper }}",
    "{{ messages[99] }}",
    "{{ raise_exception('no') }}", "{{ raise_exception(1) }}", "{{ raise_exception() }}", "{% include 'x' %}",
    "{% extends 'x' %}",
    "{% import 'x' as x %}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}", "{{ lipsum(n=100000) }}", "{{ range(10**9) }}",
    "{{ range(10**9) | list }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", "{{ 'x' * 10**9 }}",
    "{{ 10**10**10 }}",
    "{{ (10**1000)**1000 }}", "{{ [0] * 10**9 }}", "{{ 'a' | center(10**9) }}", "{{ 'a'.center(10**9) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '%1000000000d' % 1 }}", "{{ '%1000000000d' | format(1) }}", "{{ 'a' | indent(10**9) }}",
    "{{ 'a\nb' | indent(10**9) }}",
    "{{ ('x' * 100000) | replace('x', 'x' * 100000) }}", "{{ ('x' * 100000).replace('x', 'x' * 100000) }}",
    "{{ 1 << 10**9 }}",
    "{{ ('x' * 99999).join(range(99999) | map('string')) }}", "{{ range(99999) | join('x' * 99999) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | length }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{% for i in range(9999) recursive %}{% if loop.depth0 == 0 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% if (range(99999) | list | length) == 1 %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% if range(99999) | sum == 1 %}{% endif %}{% endfor %}", "{{ range(99999) | sum }}" * 9999,
    "{% set x = 'x' * 99999 %}{% for i in range(99999) %}{% if 'y' in x ~ i %}{% endif %}{% endfor %}",
    "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = m.content %}{% endfor %}{{ ns.s }}",
    "{{ messages | tojson }}",
    "{{ messages | map(attribute='content') | join(' ') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | groupby('role') }}", "{{ bos_token }}" * 300,
    "{% if messages[0]['role'] == 'system' %}{% break %}{% endif %}",
    "{% for m in messages %}{% break %}{% endfor %}", "{{ strftime_now('%Y') }}", "{% generation %}x{% endgeneration %}",
    "\ud800", "{{ '\\ud800' }}",
    "{{ '\\x00' }}", "{{ messages | map('upper') | list }}", "{{ messages | sum }}", "{{ dict(a=1) | xmlattr }}",
    "{{ 'x' | nosuchfilter }}",
    "{{ 'x' is nosuchtest }}", "(" * 500, "{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{{ " + "-" * 5000 + "1 }}",
    "{% if 1 %}" * 200,
    "{% if 1 %}" * 120 + "{% endif %}" * 120, "{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30,
    "{{ " + "1+" * 5000 + "1 }}",
    "{{ '" + "9" * 5000 + "' | int }}", "{{ " + "9" * 5000 + " }}", "{{ 7 ** 20000 }}",
    "{{ 'a' | list | batch(10**9) | list }}",
    "{{ 'a' | list | batch(10**8, 'x') | list }}", "{{ [1] | slice(10**8) | list }}", "{{ 'a' | wordwrap(0) }}",
    "{{ 'a' | truncate(-1) }}",
    "{{ messages | pprint }}", "{{ 'a b' | urlize }}", "{{ 'a'.encode('utf-16') }}",
    "{{ 'x'.translate({120: 'y' * 99999}) }}",
    "{{ caller() }}", "{{ loop }}", "{{ joiner() }}", "{{ cycler() }}", "{{ cycler(1, 2).next() }}",
    "{% call raise_exception('x') %}{% endcall %}",
    "{{ messages | random }}", "{{ {}.x.y }}", "{{ none | length }}", "{{ none.x }}", "{{ true + none }}",
    "{{ 'a'[10**30] }}", "{{ 'abc'[:10**30] }}",
    "{{ 'a' | int(base=99) }}", "{{ 'a' | float | int }}", "{{ ('inf' | float) | int }}", "{{ 1e400 | int }}",
    "{{ 'a' | round }}",
    "{{ messages | sort }}", "{{ messages | dictsort }}", "{{ messages | items }}", "{{ messages[0] | items | list }}",
    "{{ 'a'.join(1) }}",
    "{{ 'a'.split('') }}", "{{ messages[0].keys().x }}", "{{ messages | first | attr('__class__') }}",
    "{{ '%s' % messages }}", "{{ '%d' % 'a' }}",
    "{{ '%(a)s' % 1 }}", "{{ '{0.__class__}'.format(messages) }}", "{{ '{}'.format() }}", "{{ '{' .format(1) }}",
)  # fmt: skip
_PIECES = (
    "{{",
    "}}",
    "{%",
    "%}",
    "messages",
    "['role']",
    ".content",
    "'",
    '"',
    "|",
    "trim",
    "+",
    "~",
    "(",
    ")",
    "for",
    "endfor",
    "if",
    "10**9",
    "\n",
)


def changed_template(random: Random, text: str) -> str:
    """An odd template, an odd one inside the valid one, or the valid one with a piece changed."""
    how = random.randrange(4)
    if how == 0:
        return random.choice(TEMPLATES)
    at = random.randrange(len(text) + 1)
    if how == 1:
        return text[:at] + random.choice(TEMPLATES) + text[at:]
    end = min(len(text), at + random.choice((0, 1, 2, 5, 10)))
    return text[:at] + random.choice(("", *_PIECES)) + text[end:]
