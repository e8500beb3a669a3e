"""One lock per mailbox, whatever protocol asks for it: claims, queue, agents, leases."""

from mailfs.locking.mailbox import Conflict, MailboxLock
from mailfs.locking.model import Ending, Kind, Mode, Process, Requester
from mailfs.locking.outside import Outside
from mailfs.locking.posix import FileLocks
from mailfs.locking.rules import Claim
from mailfs.locking.settings import LockEvent, LockRow, LockSettings
from mailfs.locking.table import LockTable

__all__ = [
    "Claim",
    "Conflict",
    "Ending",
    "FileLocks",
    "Kind",
    "LockEvent",
    "LockRow",
    "LockSettings",
    "LockTable",
    "MailboxLock",
    "Mode",
    "Outside",
    "Process",
    "Requester",
]
