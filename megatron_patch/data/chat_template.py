"""A folder's Jinja chat template, run so that it can neither reach Python's objects nor take all time and memory.

Jinja's immutable sandbox keeps a template from Python's objects. It bounds `range` and nothing else. Two nested loops
of 100,000 steps, a text that doubles forty times, `'x' * 10**9` or a macro that calls itself twice would run for hours
or take all memory. So there are bounds (`template_bounds`):

- Every step of a loop and every call counts against a budget, and a clock runs.
- A text that an operator, a filter, a method or a block makes has at most a million characters, and a list as many
  items. What could make more in one go (`*`, `**`, `center`, `replace`, `join`, `tojson`, …) is computed in advance, or
  is not there.
- What is written out is bounded as a whole, also inside blocks and macros.

Real templates stay a hundredfold below all bounds. The bounds grow with the conversation.

Within them a template finds what transformers gives it: the tags, filters and functions of
`transformers.utils.chat_template_utils`, for which templates are written.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from megatron_patch.data.template_bounds import Budget
from megatron_patch.data.template_filters import Filters, strftime_now
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line

_MOST_SOURCE = 1 << 16  # characters of a template; LLaMA 3.1's, among the longest, has 4,000
# Methods of texts that make a large one of a small one, or bytes, of which nothing here counts the size.
_NO_METHODS = frozenset(("encode", "maketrans", "translate"))
# What a template can raise when it meets unexpected values. The fault is the template's or the conversation's.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,  # of which RecursionError is one
    TypeError,
    ValueError,
)

# render(turns, add_generation_prompt, **more) → text. The template knows the names in `more` too, such as `tools`.
Render = Callable[..., str]


class _Generation(Extension):
    """The tags `{% generation %}` and `{% endgeneration %}` around what an assistant says.

    transformers marks the text between them if it is asked to. What is learnt is found here otherwise (`rendered`), so
    the text passes through. As in transformers it is a block of its own: what is set inside is not known outside.
    """

    tags = {"generation"}  # noqa: RUF012  Jinja's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        """Jinja's hook for the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_passed_through"), [], [], body).set_lineno(line)

    def _passed_through(self, caller: Macro) -> str:
        """What the block writes."""
        return caller()


class _Namespace(Namespace):
    """Jinja's `namespace`, which is written out without what is in it. That may hold itself, or one thing often."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Dict:
    """The function `dict`. Python's class has `dict.update`, by which a template would change the conversation."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Python's `dict.fromkeys`."""
        return dict.fromkeys(*args)


class _Bounded(ImmutableSandboxedEnvironment):
    """The sandbox with the bounds of the module's docstring.

    Args:
        now: says which date `strftime_now` writes.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.budget = Budget()
        # trim_blocks and lstrip_blocks as in transformers, which templates are written for.
        extensions = [_Generation, "jinja2.ext.loopcontrols"]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self.budget.written)
        self.own = Filters(self.budget)
        self.filters = self.own.all()
        self.filters |= {_STEPS: self.budget.counted, _VALUE: self.budget.bounded, _LITERAL: _literal}
        self.globals = {name: self.globals[name] for name in ("range", "cycler", "joiner")}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace, "raise_exception": _raise_exception}
        self.globals["strftime_now"] = strftime_now(self.budget, now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's hook for a template's source: parse it, and put the bounds into the parsed template."""
        return _Counted().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Jinja's hook for attributes: texts lack some, and numbers have none (`to_bytes` makes gigabytes)."""
        is_refused = attr in _NO_METHODS if isinstance(obj, str) else isinstance(obj, (bytes, int, float, complex))
        return not is_refused and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's hook for `str.format` and `str.format_map`: refuse what would make too much before it is computed."""
        wrapped, text = super().wrap_str_format(value), getattr(value, "__self__", None)
        if wrapped is None or not isinstance(text, str):
            return wrapped

        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.budget.require_braces(text, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return bounded

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Jinja's hook for every call in a template: count it, and bound what it returns.

        Methods of texts are bounded before they run if their result can be much larger than their arguments. A
        recursive loop is a call of the loop with new items, which are counted like those of any other loop. A macro can
        make a list of its arguments.
        """
        self.budget.step()
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(obj, LoopContext) and args:  # of a recursive loop
            args = (self.budget.counted(args[0]), *args[1:])
        if isinstance(obj, Macro):
            self.budget.bounded((*args, *kwargs.values()))
        if isinstance(owner, str) and name == "replace" and len(args) > 1:
            return self.own.replace(owner, *args, **kwargs)
        if isinstance(owner, str) and name == "join" and args:
            args = (list(self.own.items_to_join(owner, args[0])), *args[1:])
        if isinstance(owner, str):
            self.own.require_width(owner, name, (*args, *kwargs.values()))
            self.own.require_search(owner, name, (*args, *kwargs.values()))
        return self.budget.bounded(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Jinja's hook for operators: refuse what would make too much before it is computed, and bound the result."""
        if operator == "**":
            self.budget.require_exponent(right)
        if operator == "*":
            self.budget.require_product(left, right)
        if operator == "%" and isinstance(left, str):
            self.budget.require_percent(left, right)
        return self.budget.bounded(super().call_binop(context, operator, left, right))


# Names of filters that no template can write.
_STEPS, _VALUE, _LITERAL = "counted-steps", "bounded-value", "literal-text"


@pass_context
def _literal(_: Any, text: str) -> str:
    """A template's own text. Since a context is passed, Jinja does not write it out as it compiles, but each time."""
    return text


def _filtered(node: Any, name: str) -> nodes.Filter:
    """A parsed expression, sent through one of the filters above."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Counted(NodeTransformer):
    """Rewrites a parsed template, so that nothing large is made or written uncounted.

    What loops go over passes `_STEPS`. Lists, tuples and objects that the template writes, and what `~` joins, pass
    `_VALUE`: written one in the other they would double a list forty times. The template's own text is written
    through the environment's `finalize`, as its expressions are.
    """

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Send what a loop goes over through `_STEPS`."""
        self.generic_visit(node)  # changes it in place
        node.iter = _filtered(node.iter, _STEPS)
        return node

    def _bounded(self, node: nodes.Node) -> nodes.Node:
        """Send a value through `_VALUE`, unless it is the target of an assignment."""
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _filtered(node, _VALUE)

    visit_Concat = visit_List = visit_Tuple = visit_Dict = _bounded

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Filter:
        """Have the template's own text counted wherever it is written."""
        return _filtered(node, _LITERAL)


def _raise_exception(message: object = "") -> None:
    """The function `raise_exception(message)`, by which a template refuses a conversation."""
    raise TemplateError(str(message))


def compile_chat_template(source: str, now: Callable[[], datetime] = datetime.now, **fixed: str) -> Render:
    """A function render(turns, add_generation_prompt, **more) → text that runs a Jinja chat template.

    Args:
        source: the template.
        now: says which date `strftime_now` writes.
        fixed: further names that the template knows, such as bos_token and eos_token.

    Raises:
        UserError: `source` is no valid Jinja, or larger than a chat template is. `render` raises it if the template
            refuses a conversation, fails on it, or meets a bound of this module.
    """
    if len(source) > _MOST_SOURCE:
        raise UserError(f"the folder's chat template has {len(source)} characters; a template has at most {_MOST_SOURCE}.")
    environment = _Bounded(now)
    try:
        template = environment.from_string(source)
    except (*_FAULTS, SyntaxError) as error:  # the last from Python's compiler, for nesting
        raise UserError(f"the folder's chat template is no valid Jinja: {_reason(error)}") from None

    def render(turns: list[dict[str, Any]], add_generation_prompt: bool, **more: Any) -> str:
        environment.budget.begin(len(str(more)) + sum(len(str(turn)) for turn in turns))
        # transformers always gives these two, so that a template finds them defined.
        given = {**fixed, "tools": None, "documents": None, **more}
        try:
            text = template.render(messages=turns, add_generation_prompt=add_generation_prompt, **given)
            text.encode("utf-8")
        except _FAULTS as error:
            raise UserError(f"the folder's chat template refused it: {_reason(error)}") from None
        return text

    return render


def _reason(error: BaseException) -> str:
    """A phrase about what a template raised."""
    if isinstance(error, UnicodeEncodeError):
        return "it writes half of a surrogate pair, which is no character"
    text = one_line(error) or type(error).__name__
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"
