"""Questions that a person wrote about texts that no template made.

They are never trained on. They show how far the skill carries beyond the templates,
and so they are harder than the generated questions.
"""

from __future__ import annotations

from tiny_model.prompt import NOT_IN_DOCUMENTS

REFUNDS = (
    "Our shop has three branches. Customers may send back any jacket within 45 days of purchase. Shipping "
    "is paid by the customer. Gift cards cannot be exchanged for cash."
)
OBSERVATORY = (
    "The Kestrel Observatory was opened in 1968 by Margit Olander. Its main mirror measures 2.4 metres "
    "across. Visitors are welcome on the first Friday of each month. The dome is heated in winter to keep "
    "ice away."
)
PUMP = (
    "The Brindle pump has two switches. Press the grey switch for six seconds to reset the pump. The "
    "filter should be washed every spring. If the red light blinks, call the service desk at extension "
    "4417."
)
STAFF = (
    "Every new colleague receives a laptop on the first day. Vacation is 28 days per year. Sick notes are "
    "due after three days. Parking permits are handed out by Olivia Tran in room 210."
)
RIVER = (
    "The Tolva is the longest river in Marland. It rises near Pinecrest and flows north for 310 "
    "kilometres. Salmon return to the Tolva in late autumn. The last ferry across the river stopped "
    "running in 1999."
)
BREAD = (
    "Rye bread needs a sourdough starter. Let the dough rest overnight. Bake the loaf at 230 degrees for "
    "fifty minutes. A stone in the oven gives a better crust."
)
SERVER = (
    "The nightly backup starts at 02:30. Backups are kept for ninety days. The database runs on port "
    "5433. The administrator of the cluster is Jonas Wieland."
)

HANDWRITTEN: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        (REFUNDS,),
        "Within how many days can I send back a jacket?",
        "Customers may send back any jacket within 45 days of purchase.",
    ),
    ((REFUNDS,), "Who pays for shipping?", "Shipping is paid by the customer."),
    ((REFUNDS,), "How many branches does the shop have?", "Our shop has three branches."),
    ((REFUNDS,), "Can gift cards be exchanged for cash?", "Gift cards cannot be exchanged for cash."),
    (
        (OBSERVATORY,),
        "Who opened the Kestrel Observatory?",
        "The Kestrel Observatory was opened in 1968 by Margit Olander.",
    ),
    ((OBSERVATORY,), "How large is the main mirror?", "Its main mirror measures 2.4 metres across."),
    ((OBSERVATORY,), "When are visitors welcome?", "Visitors are welcome on the first Friday of each month."),
    ((OBSERVATORY, REFUNDS), "Why is the dome heated?", "The dome is heated in winter to keep ice away."),
    ((PUMP,), "How do I reset the Brindle pump?", "Press the grey switch for six seconds to reset the pump."),
    ((PUMP,), "When should the filter be washed?", "The filter should be washed every spring."),
    (
        (PUMP, STAFF),
        "What should I do if the red light blinks?",
        "If the red light blinks, call the service desk at extension 4417.",
    ),
    ((STAFF, PUMP), "How many days of vacation do we get per year?", "Vacation is 28 days per year."),
    ((STAFF,), "Who hands out parking permits?", "Parking permits are handed out by Olivia Tran in room 210."),
    ((STAFF, REFUNDS), "When are sick notes due?", "Sick notes are due after three days."),
    ((STAFF,), "What does a new colleague receive?", "Every new colleague receives a laptop on the first day."),
    ((RIVER, BREAD), "What is the longest river in Marland?", "The Tolva is the longest river in Marland."),
    ((RIVER,), "When do salmon return to the Tolva?", "Salmon return to the Tolva in late autumn."),
    ((RIVER,), "When did the last ferry stop running?", "The last ferry across the river stopped running in 1999."),
    ((BREAD,), "At what temperature should I bake the loaf?", "Bake the loaf at 230 degrees for fifty minutes."),
    ((BREAD, RIVER), "What does rye bread need?", "Rye bread needs a sourdough starter."),
    ((SERVER,), "On which port does the database run?", "The database runs on port 5433."),
    ((SERVER, STAFF), "Who is the administrator of the cluster?", "The administrator of the cluster is Jonas Wieland."),
    ((SERVER,), "How long are backups kept?", "Backups are kept for ninety days."),
    ((SERVER, PUMP, RIVER), "When does the nightly backup start?", "The nightly backup starts at 02:30."),
    ((REFUNDS,), "Who founded the observatory?", NOT_IN_DOCUMENTS),
    ((OBSERVATORY,), "How much does a ticket cost?", NOT_IN_DOCUMENTS),
    ((PUMP,), "What is the capital of Marland?", NOT_IN_DOCUMENTS),
    ((STAFF, PUMP), "How do I bake bread?", NOT_IN_DOCUMENTS),
    ((RIVER,), "Who is the administrator of the cluster?", NOT_IN_DOCUMENTS),
    ((BREAD, SERVER), "What is the price of the blue lamp?", NOT_IN_DOCUMENTS),
    ((SERVER,), "When do salmon return?", NOT_IN_DOCUMENTS),
    ((REFUNDS, OBSERVATORY), "How do I reset the pump?", NOT_IN_DOCUMENTS),
)
