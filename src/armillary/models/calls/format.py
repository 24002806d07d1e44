"""How one family of models writes tool calls, as data: what the reader looks for and what a grammar enforces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from armillary.models.calls.decoder import JSON, Notation


@dataclass(frozen=True, slots=True)
class Written:
    """The exact text of calls: `begin`, then each call, `between` them, then `end`.

    A call is `before_name`, its name, `before_arguments`, its arguments, `after`.
    """

    before_name: str
    before_arguments: str
    after: str
    begin: str = ""
    between: str = ""
    end: str = ""

    def text(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls (name, arguments as text), as the model writes them."""
        each = [self.before_name + name + self.before_arguments + args + self.after for name, args in calls]
        return self.begin + self.between.join(each) + self.end


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One family's format. The reader takes more than `written` says, because models do not keep to it.

    Attributes:
        name: as deployments give it.
        title: the models that write so.
        opens: texts of which each begins a call, or a list of calls.
        closes: texts that may follow a call, or a list, and belong to it.
        bare: an object at the very beginning of the content is a call as well.
        listed: calls may stand in a JSON array, which needs one opening text only.
        separators: texts of which one may stand between two calls.
        header: pattern of what may stand between the opening text and the arguments, with a group `name`; empty
            where name and arguments are members of one object.
        tags: the arguments are not an object but parameters between tags (`armillary.models.calls.tags`), and
            begin where the header ends.
        notation: of objects.
        written: the text that the family's template writes; None where no grammar can be made of it, because
            the arguments are not JSON.
        id_length: characters that ids of calls must have (letters and digits), or None.
    """

    name: str
    title: str
    opens: tuple[str, ...]
    written: Written | None
    closes: tuple[str, ...] = ()
    bare: bool = False
    listed: bool = False
    separators: tuple[str, ...] = ()
    header: str = ""
    tags: bool = False
    notation: Notation = JSON
    id_length: int | None = None
