"""What the registry holds: a contestant, which is a method or a rival."""

from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from quantarena.methods import options as method_options
from quantarena.methods.core.bits import Bits
from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.model.policy import BUDGET, UNIFORM
from quantarena.methods.info import Capabilities, MethodInfo
from quantarena.methods.options import MethodOptions


class Contestant(ABC):
    """Base of methods, whose model the harness packs, and of rivals, which bring their network.

    Attributes:
        name: as registered.
        info: where it comes from and what it claims.
        supports: the requests that it can meet.
        Options: dataclass of its options; by default there are none.
        switches: by option, the value that turns an idea of the method off. Every switch must
            change the output on some network; ``check-method`` tests that.
        options: the values of its options.
    """

    name: ClassVar[str]
    info: ClassVar[MethodInfo]
    supports: ClassVar[Capabilities]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    switches: ClassVar[Mapping[str, Any]] = {}
    options: MethodOptions

    def __init__(self, options: MethodOptions | None = None) -> None:
        self.options = self.Options() if options is None else options

    @classmethod
    def configured(cls, pairs: Iterable[tuple[str, str]] = ()) -> Self:
        """The contestant with options that are given as text, as a cell holds them.

        Raises:
            UserError: an option that it does not have, or a value that the option cannot have.
        """
        return cls(method_options.parse(cls.name, cls.Options, pairs))

    def check_offload(self) -> None:
        """Raise ``Unsupported`` where the whole network has to be on the device at once."""
        if self.supports.whole_network:
            raise Unsupported(
                f"{self.name} learns the whole network at once, and --offload has one block of it "
                "on the device: leave it out, or run it where the network fits, without --offload"
            )

    def check(self, bits: Bits, variant: str, policy: str = UNIFORM.name) -> None:
        """Raise ``Unsupported`` when the request is outside ``supports``."""
        if policy == BUDGET.name and not self.supports.budget:
            raise Unsupported(
                f"{self.name} does not choose widths, which policy budget asks for: use uniform"
            )
        if variant not in self.supports.variants:
            raise Unsupported(f"{self.name} has no variant {variant!r}: {self.supports.variants}")
        for kind, width, known in (
            ("weights", bits.weight, self.supports.weight_bits),
            ("activations", bits.act, self.supports.act_bits),
        ):
            if width not in known:
                raise Unsupported(f"{self.name} does not quantize {kind} to {width} bits: {known}")
