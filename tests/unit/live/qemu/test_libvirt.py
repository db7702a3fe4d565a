from __future__ import annotations

from pathlib import Path

from lunr.live.qemu import libvirt

_DOMAIN = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>{more}</domain>"""
_LINES = """<qemu:commandline>
    <qemu:arg value='-device'/><qemu:arg value='unix:/no'/>
    <qemu:arg value='-qmp'/><qemu:arg value='unix:/run/web.qmp,server=on,wait=off'/>
    <qemu:env name='A' value='-qmp'/>
  </qemu:commandline>"""


def test_the_socket_in_a_definition() -> None:
    assert libvirt.parse(_DOMAIN.format(more=_LINES)) == Path("/run/web.qmp")
    assert libvirt.parse(_DOMAIN.format(more="")) is None
    tcp = _LINES.replace("unix:/run/web.qmp", "tcp:127.0.0.1:4444")
    assert libvirt.parse(_DOMAIN.format(more=tcp)) is None
