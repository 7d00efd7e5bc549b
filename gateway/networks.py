"""Lists of networks out of settings, such as "10.0.0.0/8, 2001:db8::/32, 192.0.2.7". Pure."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

NETWORKS_MAX: Final = 256


class Networks:
    """Which addresses are in a list of networks. Raises ValueError for a text that is no such list."""

    def __init__(self, text: str = "") -> None:
        given = [part.strip() for part in text.split(",") if part.strip()]
        if len(given) > NETWORKS_MAX:
            raise ValueError(f"there are more than {NETWORKS_MAX} networks")
        networks: list[IPv4Network | IPv6Network] = []
        for part in given:
            try:
                networks.append(ip_network(part))
            except ValueError:
                raise ValueError(f"{part!r} is neither an address nor a network such as 10.0.0.0/8") from None
        self._networks = tuple(networks)
        self.holds = lru_cache(maxsize=4096)(self._holds)
        """Whether an address, as text, is in one of the networks. What is no address is in none."""

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _holds(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)
