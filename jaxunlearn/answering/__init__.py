"""Answers to deletion requests, in windows: an inbox is read, a merged request is answered, receipts go out."""

from jaxunlearn.answering.asked import Asked as Asked
from jaxunlearn.answering.inbox import InboxBusy as InboxBusy
from jaxunlearn.answering.inbox import InboxError as InboxError
from jaxunlearn.answering.near import Near as Near
from jaxunlearn.answering.near import near_duplicates as near_duplicates
from jaxunlearn.answering.receipts import Receipt as Receipt
from jaxunlearn.answering.receipts import ReceiptError as ReceiptError
from jaxunlearn.answering.receipts import verify as verify
from jaxunlearn.answering.service import Answered as Answered
from jaxunlearn.answering.service import Service as Service
from jaxunlearn.answering.service import serve as serve
from jaxunlearn.answering.setup import Setup as Setup
from jaxunlearn.answering.setup import convex_setup as convex_setup
