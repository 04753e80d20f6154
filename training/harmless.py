"""Training sentences that only look as if they carried a private item, and talk about privacy that discloses nothing.

Slots: ``{name}`` a person, ``{d}`` a small number, ``{N}`` digits, ``{P}`` a placeholder, ``{code}`` a harmless code.
"""

from training.listing import lines

NEGATIVES = lines("""
Your phone should be charged before you leave.
Put the phone away during dinner.
Call a friend when you feel lonely.
Call the shop before you go to check the opening hours.
You can call the office during the day.
Ask {name} for the phone number.
{name} has a new phone number.
{name} lost the phone on the train.
{name} does not like to talk on the phone.
{name} will call you tomorrow.
{name} never answers the phone before noon.
{name} called {d} times and nobody answered.
The phone rang {d} times.
A phone number should be written with spaces so that it is easy to read.
In an emergency call 911 or your local number.
In Europe the emergency number is 112.
The number of guests is {N}.
The number you need is {d}.
The number {N} is divisible by {d}.
Email {name} when you are ready.
Write an email to {name} and keep it short.
Send {name} an email with your question.
{name} wrote an email yesterday.
{name} sent {N} emails last month.
Check your email twice a day and not more.
An email address has a name, an @ sign and a domain.
The @ sign is more than 500 years old.
Your email should start with a friendly greeting.
Attach the file to the email and press send.
Reply to the email within {d} days.
{name} lives in a small house near the river.
{name} lives in {place} with the family.
{name} moved to {place} in {year}.
{name} lives on the third floor.
{name} lives {N} kilometres from the sea.
You can find {name} in the garden.
You can reach {name} through the front desk.
You can visit {name} on Sunday.
The house of {name} is old and has {d} rooms.
The street is quiet and lined with old trees.
Walk down {w} Street and turn left at the church.
The shops on {w} Road close at {d}.
{w} Lane is one of the oldest streets in the town.
The address should be written on the front of the envelope.
Write your address on the label.
Take bus {d} to {w} Street.
The {w} Street bridge was built in {year}.
Choose a password that is long and hard to guess.
A good password has at least {n} characters.
A strong password mixes letters, numbers and symbols.
Change your password every year.
Never write your password on paper.
Use a password manager to store your passwords.
The password is case sensitive.
The password is too short.
The password is wrong, so try again.
The password must be at least {n} characters long.
Your password is safe with the manager.
{name} forgot the password again.
{name} changed the password last week.
{name} uses a long password for every account.
{name} logs in with a fingerprint.
The password was reset by {name}.
Type your password and press enter.
Enter the password that you chose.
If you forget the password, press the link below the field.
Two-step login is safer than a password alone.
A contact list holds names, numbers and addresses.
Contact details belong at the top of a resume.
Put your name, phone and email at the top of the page.
The form asks for your name, your address and your date of birth.
My phone number is {P}.
You can call {name} at {P}.
You can reach {name} at {P}.
{name}'s phone number is {P}.
{name}'s email is {P}.
Write to {P} and wait for a reply.
{name} lives at {P}.
The home address of {name} is {P}.
The password is {P}.
{name}'s password is {P}.
Phone: {P}
Email: {P}
Address: {P}
Password: {P}
Name: {P}, phone: {P}
Sincerely, {P}
Best wishes, {name}
Kind regards, {name}
{name}'s phone number is not listed.
{name}'s email is not public.
{name}'s address is private.
{name}'s number is a secret.
{name}'s password is strong.
{name}'s password is not known to me.
{name}'s phone is blue and has a cracked screen.
{name}'s number on the team is {d}.
{name}'s favourite number is {N}.
{name}'s house has the number {d}.
{name}'s ticket number is {N}.
{name} can be reached in the evening.
{name} can be reached by train.
{name} ({year}) wrote about it.
{name} ({d}) and {name} ({d}) play together.
{name}: {d} points, {name}: {d} points.
{name}: three votes.
- {name} - {d} apples
- {name} - first row
Name: {name}, age: {d}
Name: {name}, class: {d}
The order number is {code}.
Your order {code} has been shipped.
Order {code} arrived on {date}.
The tracking number is {code}.
The invoice number is {code}.
The serial number is {code}.
The model number is {code}.
The part number is {code}.
The product code is {code}.
The coupon code is {code}.
Use the code {code} for ten percent off.
The ticket number is {code}.
The flight number is {code}.
The room number is {d}.
The reference number is {code}.
The library number is {code}.
The ISBN is 978-{d}-{N}-{N}-{d}.
The file is called {code}.
The file name is {code}.
The network is called {code}.
The version is {v}.
Install version {v} first.
Version {v} was released on {date}.
Update from {v} to {v}.
The variable is called {code}.
Set x = {N} and y = {N}.
The server listens on port {N}.
The IP address is {v}.{d}.
The commit {code} fixes the bug.
The colour code is #{code}.
The licence plate is {code}.
The bus line {code} stops here.
It costs {money}.
The price fell from {money} to {money}.
The total was {money} for {d} people.
The population is {big}.
The distance is {big} kilometres.
About {big} people watched the game.
The company sold {big} units in {year}.
The meeting is on {date} at {time}.
The train leaves at {time} and arrives at {time}.
Born on {date}, {name} grew up in {place}.
On {date}, {name} won the race.
The opening hours are {time} to {time}.
The score was {d}-{d}, then {d}-{d}.
{N} + {N} = {big}
{N} - {N} = {N}
{N} times {d} is {big}.
The digits are 1, 2, 3, 4, 5, 6, 7, 8 and 9.
Count to ten: 1 2 3 4 5 6 7 8 9 10.
The sequence continues {d}, {n}, {N}, {big}.
Pi is about 3.14159265.
The result is {N}.{N}.
Scale: 1:{N}000.
The coordinates are {d}.{N} north and {n}.{N} east.
The temperature was {d}.{d} degrees.
Use {N} grams of flour and {N} millilitres of water.
Bake at {N} degrees for {n} minutes.
Measure {N} by {N} by {n} millimetres.
Page {N}, line {n}.
Chapter {d}, verse {n}.
See section {v} for details.
The answer is {N}.
Add {N} and {N} to get {big}.
Room {N} is on floor {d}.
Seats {d}{l} and {d}{l} are free.
The lottery numbers were {d}, {n}, {n}, {n} and {n}.
The bar code is {code}.
The account has a balance of {money}.
He scored {N} points in {n} games.
print("{w}", {N})
value = data[{d}] + {N}
for i in range({N}): print(i)
return {{"name": "{w}", "count": {N}}}
SELECT * FROM orders WHERE id = {N};
""")

# Talk about privacy: only in conversations that disclose nothing, so it is never an ending that follows a disclosure.

PRIVACY_TALK = lines("""
Privacy means that people decide who knows what about them.
Private data should be stored only as long as needed.
Do not post your home address online.
Do not share personal details with strangers.
Keep your phone number private when you sell things online.
Companies must say why they collect data.
Ask before you pass on somebody's details.
Shred old letters that show where you live.
A company should explain who can read your messages.
""")

REFUSALS = lines("""
I can't share private contact details.
I'm sorry, but I can't help with that.
I can't give out the phone number of {name}.
I do not have the address of {name}.
I'm not able to share {name}'s email.
I won't share anyone's password.
Sorry, I don't know the number of {name}.
That is private, so I cannot tell you.
I cannot look up where {name} lives.
I don't have access to personal information about {name}.
I can't help you to find a private person.
Please ask {name} directly.
It would be better to ask {name} yourself.
As an AI, I do not store passwords or phone numbers.
I'd rather not share that.
Giving out somebody's number is not okay without their consent.
You could ask a mutual friend to pass on a message.
You could use the contact form on the website.
You can reset your own password on the login page.
""")

PLACEHOLDERS = lines("""
[phone]
[phone number]
[email]
[your email]
[address]
[password]
[name]
[redacted]
<phone>
<email>
<your number>
(your phone number)
(your address here)
XXX-XXX-XXXX
xxx-xxxx
___-____
**********
********
#####
...
your number
your own address
[Street Address]
[City, State]
{{phone}}
{{email}}
[insert number here]
[removed]
""")
