"""Shape and dtype checks of annotated functions, made while JAX traces them.

A decorator and not jaxtyping's import hook: the hook also checks dataclass fields when JAX
unflattens, and a pytree whose leaves are specs or vmapped tracers then raises.
"""

import beartype
import jaxtyping

typed = jaxtyping.jaxtyped(typechecker=beartype.beartype)
