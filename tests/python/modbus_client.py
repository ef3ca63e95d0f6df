"""A PLC as a Modbus master, by the unmodified pymodbus: one mailbox from the doorbell to the result.

    python modbus_client.py rtu PORT | tcp HOST:PORT

Says "stored NUMBER" once the request is on the gateway's disk and goes on asking while the test restarts the gateway; then
"result TEXT". What is not as the register map says ends it with an error.
"""

import sys
import time

from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ExceptionResponse

GATEWAY = 17
BUSY = 6
GIVE_UP_S = 60
# Mailbox 0: holding registers from here, input registers from there.
HOLDING, INPUT = 0, 1000
RES_ACK = 120
ACK_SEQ, REQ_NO, STATE, RES_SEQ, RES_LEN, RES_TEXT = 0, 2, 4, 6, 13, 14
DONE = 4
TASK = 13


class Master:
    """One mailbox of the gateway; what gets no answer is asked again, as a PLC does."""

    def __init__(self, kind, where):
        if kind == "tcp":
            host, port = where.rsplit(":", 1)
            self.client = ModbusTcpClient(host, port=int(port), timeout=0.5, retries=0)
        else:
            # A pseudo-terminal has no parity bit and refuses to be given one.
            self.client = ModbusSerialClient(where, baudrate=19_200, parity="N", timeout=0.5, retries=0)
        self.until = time.monotonic() + GIVE_UP_S

    def ask(self, question):
        while time.monotonic() < self.until:
            try:
                answer = question()
            except (ModbusException, OSError):
                # The gateway is away. A reset connection reaches us as the socket's own error, with the socket kept.
                self.client.close()
                time.sleep(0.02)
                continue
            if isinstance(answer, ExceptionResponse) and answer.exception_code == BUSY:
                time.sleep(0.02)
                continue
            assert not answer.isError(), answer
            return answer
        raise SystemExit("no answer within a minute")

    def read(self, address, count):
        return self.ask(lambda: self.client.read_input_registers(INPUT + address, count=count, device_id=GATEWAY)).registers

    def write(self, address, values):
        self.ask(lambda: self.client.write_registers(HOLDING + address, values, device_id=GATEWAY))

    def wait(self, address, value):
        while self.read(address, 1) != [value]:
            if time.monotonic() > self.until:
                raise SystemExit(f"register {address} is not {value}: {self.read(0, 14)}")
            time.sleep(0.02)

    def block(self, seq, argument):
        """The doorbell, the task, its priority, a day to live, no flags, one argument and no text."""
        kinds = self.client.DATATYPE
        day = self.client.convert_to_registers(86_400, kinds.UINT32)
        return [seq, TASK, 1, *day, 0, 1, 0, *self.client.convert_to_registers(argument, kinds.FLOAT32)]


def main():
    master = Master(*sys.argv[1:])
    version = master.ask(lambda: master.client.read_input_registers(900, count=6, device_id=GATEWAY)).registers
    assert version[0] == 0x0100, version
    seq = master.read(ACK_SEQ, 1)[0] % 65_535 + 1
    block = master.block(seq, 1500.0)
    master.write(0, block)
    master.wait(ACK_SEQ, seq)
    # Written again, as after a lost answer: the same number is the same request.
    master.write(0, block)
    number = master.client.convert_from_registers(master.read(REQ_NO, 2), master.client.DATATYPE.UINT32)
    print("stored", number, flush=True)
    while master.read(RES_SEQ, 1) != [seq]:
        master.write(0, block)
        assert master.read(REQ_NO, 2) in ([0, 0], master.client.convert_to_registers(number, master.client.DATATYPE.UINT32))
        if time.monotonic() > master.until:
            raise SystemExit(f"no result: {master.read(0, 14)}")
        time.sleep(0.05)
    assert master.read(STATE, 1) == [DONE], master.read(0, 14)
    length = master.read(RES_LEN, 1)[0]
    text = b"".join(register.to_bytes(2, "big") for register in master.read(RES_TEXT, (length + 1) // 2))
    print("result", text[:length].decode("ascii"), flush=True)
    master.write(RES_ACK, [seq])
    master.wait(RES_SEQ, 0)
    master.client.close()


main()
