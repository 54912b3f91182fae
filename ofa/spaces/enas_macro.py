"""ENAS' macro space (Pham et al. 2018, arXiv 1802.03268, section 2.3): 12 layers, 6 operations, any skip connections.

The released final network is `enas_macro:layers=24,channels=96,separable=no`; the released network of shared weights is
`enas_macro:layers=12,channels=36,growth=1,join=add`, that of the network that is trained in the end `enas_macro:join=conv`.
"""

from ofa.macro_space import MacroSpace

SPACE = MacroSpace()
